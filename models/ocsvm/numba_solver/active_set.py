"""Second stage: Newton steps on the free set, adding or removing one vector at a time, to machine precision."""

import numpy as np

from .jit import fastmath, whole_lanes
from .kernel_rows import add_rows, kernel_row
from .smo import extremes
from .workspace import HUGE, SNAP


@fastmath
def _factorise(work, size, ridge):
    """Triangular factor L, Q = L'L, of K on the free set with its last vector, the pivot, eliminated.

    Q_ij = K_ij - K_ip - K_pj + K_pp is a Gram matrix of differences, hence positive semidefinite. It is computed from
    the last row to the first, so that every row begins at 0 and can be processed in full vectors. The diagonal is
    stored inverted in `inverse`, and as zeros in the factor.
    """
    rows, free, factor, inverse, line = work.rows, work.free, work.factor, work.inverse, work.line
    to_pivot = work.step
    pivot = free[size]
    for j in range(size):
        to_pivot[j] = rows[pivot, free[j]]
    for k in range(size - 1, -1, -1):
        row, own = free[k], to_pivot[k]
        for j in range(k + 1):
            line[j] = rows[row, free[j]] - own - to_pivot[j]
        padded = whole_lanes(k + 1)
        for j in range(k + 1, padded):
            line[j] = 0.0
        line[k] += ridge
        for p in range(k + 1, size, 4):
            # Rows from `size` on are left from an earlier system and get the weight 0.
            w0 = factor[p, k]
            w1 = factor[p + 1, k] if p + 1 < size else 0.0
            w2 = factor[p + 2, k] if p + 2 < size else 0.0
            w3 = factor[p + 3, k] if p + 3 < size else 0.0
            for j in range(padded):
                line[j] -= w0 * factor[p, j] + w1 * factor[p + 1, j] + w2 * factor[p + 2, j] + w3 * factor[p + 3, j]
        scale = 1.0 / np.sqrt(max(line[k], ridge))
        inverse[k] = scale
        for j in range(padded):
            factor[k, j] = line[j] * scale
        for j in range(k, padded):
            factor[k, j] = 0.0


@fastmath
def substitute(work, size):
    """Solve the factorised system in place; ``work.step`` holds the right-hand side."""
    factor, inverse, x = work.factor, work.inverse, work.step
    for j in range(size, whole_lanes(size)):
        x[j] = 0.0
    for k in range(size - 1, -1, -1):
        value = x[k] * inverse[k]
        for j in range(whole_lanes(k)):
            x[j] -= value * factor[k, j]
        x[k] = value
    for k in range(size):
        value = 0.0
        for j in range(whole_lanes(k)):
            value += factor[k, j] * x[j]
        x[k] = (x[k] - value) * inverse[k]


@fastmath
def fresh_gradient(work, m):
    """Compute the gradient g anew from a."""
    a, which, weights = work.a, work.which, work.weights
    n = 0
    for i in range(m):
        if a[i] > 0.0:
            which[n] = i
            weights[n] = a[i]
            n += 1
    work.g[:] = 0.0
    add_rows(work.g, work.g.shape[0], weights, which, n, work.rows)


@fastmath
def _step_on_free_set(work, n, ridge):
    """One Newton step, shortened at the bounds. Returns the free vector that reached its bound, or -1."""
    a, upper, g, free, step = work.a, work.upper, work.g, work.free, work.step
    size = n - 1
    _factorise(work, size, ridge)
    level = g[free[size]]
    for i in range(size):
        step[i] = level - g[free[i]]
    substitute(work, size)
    last = 0.0
    for i in range(size):
        last -= step[i]
    step[size] = last
    blocked = -1
    length = 1.0
    for i in range(n):
        value, bound = a[free[i]], upper[free[i]]
        if step[i] < 0.0 and value + length * step[i] <= SNAP:
            length = min(length, -value / step[i])
            blocked = i
        elif step[i] > 0.0 and value + length * step[i] >= bound - SNAP:
            length = min(length, (bound - value) / step[i])
            blocked = i
    for i in range(n):
        index = free[i]
        before = a[index]
        if i == blocked:
            after = 0.0 if step[i] < 0.0 else upper[index]
            work.no_gain[index] = 0.0 if after < upper[index] else HUGE
            work.no_give[index] = 0.0 if after > 0.0 else HUGE
        else:
            after = min(max(before + length * step[i], 0.0), upper[index])
        a[index] = after
        step[i] = after - before
    add_rows(g, g.shape[0], step, free, n, work.rows)
    return blocked


@fastmath
def newton_steps(work, points, m, gamma, tolerance, ridge):
    """Newton steps on the free set, until the KKT gap is at rounding level.

    Each iteration either removes the first free vector that reaches a bound or, at the minimum over the free set, frees
    the vector at a bound with the largest violation. The factor of the last free set is kept. Returns the number of
    free vectors.
    """
    a, g, no_gain, no_give, free = work.a, work.g, work.no_gain, work.no_give, work.free
    n = 0
    for i in range(m):
        if 0.0 < a[i] < work.upper[i]:
            free[n] = i
            n += 1
    refined = 0
    for _ in range(20 * m + 100):
        blocked = _step_on_free_set(work, n, ridge) if n > 0 else -1
        if blocked >= 0:
            for i in range(blocked, n - 1):
                free[i] = free[i + 1]
            n -= 1
            continue
        giver, taker = extremes(g, no_gain, no_give, work.mask)
        highest = g[giver]
        lowest = g[taker] + no_gain[taker]
        if highest - lowest <= tolerance:
            break
        level = 0.0
        gives, takes = True, True
        for i in range(n):
            level += g[free[i]]
            gives &= free[i] != giver
            takes &= free[i] != taker
        if not gives and not takes:
            # No violation: the gap is rounding error on the free set. Recompute the gradient and step again.
            if refined == 2:
                break
            refined += 1
            fresh_gradient(work, m)
            continue
        if n > 0 and gives and takes:
            level /= n
            takes = level - lowest >= highest - level
            gives = not takes
        if gives:
            no_gain[giver] = 0.0
            free[n] = giver
            n += 1
        if takes:
            no_give[taker] = 0.0
            if not work.known[taker]:
                kernel_row(points, points.shape[1], points, taker, gamma, work.rows, taker)
                work.known[taker] = True
            free[n] = taker
            n += 1
    return n
