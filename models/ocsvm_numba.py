"""The compiled core: the dual of the one-class SVM at one location, and the loops over locations.

All compiled functions of the package live in this one file on purpose: numba's cache on disk watches the file that
defines a function, and would go on using an outdated copy of a helper that had changed in another file.

The dual (Schölkopf et al., Neural Computation 2001; scaled as in LIBSVM): minimise ``1/2 a'Ka`` subject to
``sum(a) = total`` and ``0 <= a_i <= 1``, with ``total = nu*m``. As the sum of ``a`` is fixed, any constant may be taken
off the kernel: `rows` hold ``K - 1 = expm1(-gamma*|z_i - z_j|^2)``, whose diagonal is 0 and which keeps its digits
when the kernel is nearly flat. Optimal is an ``a`` whose gradient ``g = (K - 1)a`` is lowest where ``a`` is 1 and
highest where it is 0; the KKT gap measures by how much that fails: max of g over a > 0, less min of g over a < 1.

Two stages find it: steps along pairs with second-order choice of the partner (Fan, Chen, Lin, JMLR 2005) get the active
set nearly right; Newton steps on the free set, adding and dropping one vector at a time, then end at machine precision.
"""

from collections import namedtuple

import numpy as np
from numba import njit

# Sums may be reordered (they vectorise only then); no step sees NaN or infinity, the callers have checked.
_FAST = {"contract", "reassoc", "nsz", "nnan"}
_EXACT = {"contract"}
_HUGE = 1e300
_LANES = 8
_FIRST = np.int64(-0x7FFFFFFFFFFFFFFF)
_LAST = np.int64(0x7FFFFFFFFFFFFFFF)
_COARSE = 1e-2
_FINE = 1e-9
_RIDGE = 1e-13
# Beyond this many free vectors a Newton step, which costs their cube, is worth more pair steps before it.
_MANY_FREE = 16
# A coefficient this near to a bound lies on it: else rounding would make up free vectors.
_SNAP = 1e-12

Workspace = namedtuple("Workspace", "points rows known a g no_gain no_give score free factor rhs mask")
Workspace.__doc__ = """Scratch memory for one location, used again for the next; `width` is m rounded up to whole lanes.

points (d, width), rows (m, width) of K - 1, known (m,): which rows are computed; a, g (width,); no_gain, no_give
(width,): 0 where a may grow (shrink), huge where it may not; score (width,); free (m,): indices of the free vectors;
factor (m, width), rhs (m,): the Newton system; mask: see `_tagged`.
"""


@njit(nogil=True, cache=True, fastmath=_EXACT)
def expm1_negative(x):
    """expm1(-x) for x >= 0, to 6e-16 relative; free of branches and calls, so that loops over it vectorise."""
    x = min(x, 64.0)
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = n * 1.90821492927058770002e-10 - (x - n * 6.93147180369123816490e-01)
    p = 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r * r + r
    power = np.int64((1023 - np.int64(n)) << 52).view(np.float64)
    return power * p + (power - 1.0)


@njit(nogil=True, cache=True, fastmath=_FAST)
def _centred_kernel(points, others, i, gamma, out, o):
    """Row o of `out`: K - 1 between column i of `others` (d, ...) and the columns of `points` (d, width)."""
    width = out.shape[1]
    dimension = points.shape[0]
    quads = dimension // 4 * 4
    for j in range(width):
        out[o, j] = 0.0
    # Four dimensions at a time: fewer passes over `out`.
    for k in range(0, quads, 4):
        c0, c1, c2, c3 = others[k, i], others[k + 1, i], others[k + 2, i], others[k + 3, i]
        for j in range(width):
            d0 = points[k, j] - c0
            d1 = points[k + 1, j] - c1
            d2 = points[k + 2, j] - c2
            d3 = points[k + 3, j] - c3
            out[o, j] += d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
    for k in range(quads, dimension):
        c0 = others[k, i]
        for j in range(width):
            d0 = points[k, j] - c0
            out[o, j] += d0 * d0
    for j in range(width):
        out[o, j] = expm1_negative(gamma * out[o, j])


@njit(nogil=True, cache=True, fastmath=_FAST)
def _add_rows(g, weights, which, n, rows):
    """g += sum of weights[f] * rows[which[f]] over the first n f, four rows at a pass."""
    quads = n // 4 * 4
    for f in range(0, quads, 4):
        i0, i1, i2, i3 = which[f], which[f + 1], which[f + 2], which[f + 3]
        w0, w1, w2, w3 = weights[f], weights[f + 1], weights[f + 2], weights[f + 3]
        for j in range(g.shape[0]):
            g[j] += w0 * rows[i0, j] + w1 * rows[i1, j] + w2 * rows[i2, j] + w3 * rows[i3, j]
    for f in range(quads, n):
        i0 = which[f]
        weight = weights[f]
        for j in range(g.shape[0]):
            g[j] += weight * rows[i0, j]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _tagged(value, index, mask):
    """The bits of a number >= 0, which order as the number does, with its index in place of the last of them.

    A maximum over tagged integers finds the largest and where it is in one vectorised pass; maxima of floats do not
    vectorise here. The mask (one less than a power of 2) sets how many bits the index takes; 0 keeps the number exact.
    """
    return (np.float64(value).view(np.int64) & ~mask) | (index & mask)


@njit(nogil=True, cache=True, fastmath=_FAST)
def _extremes(g, no_gain, no_give, mask):
    """Where g (never above 0) is highest among those that can give, and where lowest among those that can gain."""
    giver = _LAST
    taker = _FIRST
    for j in range(g.shape[0]):
        giver = min(giver, _tagged(no_give[j] - g[j], j, mask))
        taker = max(taker, _tagged(-g[j] - no_gain[j], j, mask))
    return giver & mask, taker & mask


@njit(nogil=True, cache=True, fastmath=_FAST)
def _largest(values, mask):
    """Where the largest of some numbers >= 0 is."""
    best = _FIRST
    for j in range(values.shape[0]):
        best = max(best, _tagged(values[j], j, mask))
    return best & mask


@njit(nogil=True, cache=True, fastmath=_FAST)
def _start(points, rows, known, a, g, no_gain, no_give, score, m, total, gamma, mask):
    """Fill from the outside: the points farthest from the mean get a = 1 until `total` is spent.

    Returns the mean of one row of 1 - K, at most m/2 * s with s the mean of 1 - K off the diagonal: each pair occurs in
    two of the m rows.
    """
    dimension, width = points.shape
    for j in range(width):
        a[j] = 0.0
        g[j] = 0.0
        no_gain[j] = 0.0
        no_give[j] = _HUGE
        score[j] = 0.0
    for k in range(dimension):
        centre = 0.0
        for j in range(m):
            centre += points[k, j]
        centre /= m
        for j in range(width):
            difference = points[k, j] - centre
            score[j] += difference * difference
    for j in range(m, width):
        score[j] = -_HUGE
        no_gain[j] = _HUGE
    for j in range(m):
        known[j] = False
    left = total
    row_mean = 0.0
    while left > 0.0:
        i = _largest(score, mask)
        score[i] = -_HUGE
        share = min(left, 1.0)
        left -= share
        a[i] = share
        no_give[i] = 0.0
        no_gain[i] = 0.0 if share < 1.0 else _HUGE
        _centred_kernel(points, points, i, gamma, rows, i)
        known[i] = True
        for j in range(width):
            g[j] += share * rows[i, j]
        if row_mean == 0.0:
            for j in range(m):
                row_mean -= rows[i, j]
            row_mean /= m
    return row_mean


@njit(nogil=True, cache=True, fastmath=_FAST)
def _pair_steps(points, rows, known, a, g, no_gain, no_give, gamma, tolerance, most, mask):
    """Move mass along pairs until the KKT gap is below the tolerance.

    The giver is the highest of g; the taker, whose row may be new, promises the largest decrease of 1/2 a'Ka.
    """
    width = g.shape[0]
    giver, lowest = _extremes(g, no_gain, no_give, mask)
    for _ in range(most):
        highest = g[giver]
        if highest - (g[lowest] + no_gain[lowest]) <= tolerance:
            return
        best = np.int64(0)
        for j in range(width):
            slope = max(highest - (g[j] + no_gain[j]), 0.0)
            best = max(best, _tagged(slope * slope / max(-rows[giver, j], 1e-300), j, mask))
        taker = best & mask
        if not known[taker]:
            _centred_kernel(points, points, taker, gamma, rows, taker)
            known[taker] = True
        give, room = a[giver], 1.0 - a[taker]
        step = min((highest - g[taker]) / max(-2.0 * rows[giver, taker], 1e-300), give, room)
        a[giver] = give - step
        no_gain[giver] = 0.0
        if give - step <= _SNAP:
            a[giver] = 0.0
            no_give[giver] = _HUGE
        a[taker] += step
        no_give[taker] = 0.0
        if room - step <= _SNAP:
            a[taker] = 1.0
            no_gain[taker] = _HUGE
        first = _LAST
        last = _FIRST
        for j in range(width):
            value = g[j] + step * (rows[taker, j] - rows[giver, j])
            g[j] = value
            first = min(first, _tagged(no_give[j] - value, j, mask))
            last = max(last, _tagged(-value - no_gain[j], j, mask))
        giver = first & mask
        lowest = last & mask


@njit(nogil=True, cache=True, fastmath=_FAST)
def _factorise(rows, free, n, ridge, factor):
    """Cholesky factor of K on the free set with its last vector eliminated.

    Q_ij = K_ij - K_ip - K_pj + K_pp is positive semidefinite as it stands, a Gram matrix of differences; the factor is
    kept as its transpose (upper, by rows), with the inverses of its diagonal on the diagonal.
    """
    pivot = free[n]
    for k in range(n):
        row = free[k]
        own = rows[row, pivot]
        for j in range(k, n):
            factor[k, j] = rows[row, free[j]] - own - rows[pivot, free[j]]
        factor[k, k] += ridge
        quads = k // 4 * 4
        for p in range(0, quads, 4):
            w0, w1, w2, w3 = factor[p, k], factor[p + 1, k], factor[p + 2, k], factor[p + 3, k]
            for j in range(k, n):
                factor[k, j] -= (
                    w0 * factor[p, j] + w1 * factor[p + 1, j] + w2 * factor[p + 2, j] + w3 * factor[p + 3, j]
                )
        for p in range(quads, k):
            w0 = factor[p, k]
            for j in range(k, n):
                factor[k, j] -= w0 * factor[p, j]
        inverse = 1.0 / np.sqrt(max(factor[k, k], ridge))
        for j in range(k, n):
            factor[k, j] *= inverse
        factor[k, k] = inverse


@njit(nogil=True, cache=True, fastmath=_FAST)
def _substitute(factor, n, rhs):
    """Solve in place with the factor of `_factorise` (its diagonal holds the inverses)."""
    for k in range(n):
        value = rhs[k] * factor[k, k]
        rhs[k] = value
        for j in range(k + 1, n):
            rhs[j] -= value * factor[k, j]
    for k in range(n - 1, -1, -1):
        value = rhs[k]
        for j in range(k + 1, n):
            value -= factor[k, j] * rhs[j]
        rhs[k] = value * factor[k, k]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _polish(points, rows, known, a, g, no_gain, no_give, free, factor, rhs, m, gamma, tolerance, ridge, mask):
    """Newton steps on the free set, until the KKT gap is at rounding level.

    Each round either drops the first free vector that meets a bound, or, at the minimum over the free set, frees the
    worst violator among the bounded ones. Leaves the factor of the last free set. Returns the number of free vectors.
    """
    n = 0
    for i in range(m):
        if 0.0 < a[i] < 1.0:
            free[n] = i
            n += 1
    refined = 0
    for _ in range(20 * m + 100):
        blocked = -1
        if n > 0:
            size = n - 1
            pivot = free[size]
            _factorise(rows, free, size, ridge, factor)
            for i in range(size):
                rhs[i] = g[pivot] - g[free[i]]
            _substitute(factor, size, rhs)
            last = 0.0
            for i in range(size):
                last -= rhs[i]
            rhs[size] = last
            length = 1.0
            for i in range(n):
                value = a[free[i]]
                if rhs[i] < 0.0 and value + length * rhs[i] <= _SNAP:
                    length = min(length, -value / rhs[i])
                    blocked = i
                elif rhs[i] > 0.0 and value + length * rhs[i] >= 1.0 - _SNAP:
                    length = min(length, (1.0 - value) / rhs[i])
                    blocked = i
            for i in range(n):
                index = free[i]
                before = a[index]
                if i == blocked:
                    after = 0.0 if rhs[i] < 0.0 else 1.0
                    no_gain[index] = 0.0 if after < 1.0 else _HUGE
                    no_give[index] = 0.0 if after > 0.0 else _HUGE
                else:
                    after = min(max(before + length * rhs[i], 0.0), 1.0)
                a[index] = after
                rhs[i] = after - before
            _add_rows(g, rhs, free, n, rows)
        if blocked >= 0:
            for i in range(blocked, n - 1):
                free[i] = free[i + 1]
            n -= 1
            continue
        giver, taker = _extremes(g, no_gain, no_give, mask)
        highest = g[giver]
        lowest = g[taker] + no_gain[taker]
        if highest - lowest <= tolerance:
            break
        level = 0.0
        spread_low, spread_high = _HUGE, -_HUGE
        for i in range(n):
            level += g[free[i]]
            spread_low = min(spread_low, g[free[i]])
            spread_high = max(spread_high, g[free[i]])
        if n > 0 and highest <= spread_high and lowest >= spread_low:
            # No violator: the gap is rounding on the free set. A step from a fresh gradient is all that is left.
            if refined == 2:
                break
            refined += 1
            _fresh_gradient(rows, a, g, m)
            continue
        takes = n == 0
        gives = n == 0
        if n > 0:
            level /= n
            takes = level - lowest >= highest - level
            gives = not takes
        if gives:
            no_gain[giver] = 0.0
            free[n] = giver
            n += 1
        if takes:
            no_give[taker] = 0.0
            if not known[taker]:
                _centred_kernel(points, points, taker, gamma, rows, taker)
                known[taker] = True
            free[n] = taker
            n += 1
    return n


@njit(nogil=True, cache=True)
def _spend_exactly(a, free, m, n, total):
    """Take the rounding out of the sum of a; a lone free vector that this puts on a bound is free no longer."""
    if n == 0:
        return 0
    last = free[n - 1]
    value = total
    for i in range(m):
        if i != last:
            value -= a[i]
    if n == 1 and not _SNAP < value < 1.0 - _SNAP:
        a[last] = np.round(value)
        return 0
    a[last] = min(max(value, 0.0), 1.0)
    return n


@njit(nogil=True, cache=True, fastmath=_FAST)
def _fresh_gradient(rows, a, g, m):
    for j in range(g.shape[0]):
        g[j] = 0.0
    for i in range(m):
        if a[i] > 0.0:
            for j in range(g.shape[0]):
                g[j] += a[i] * rows[i, j]


@njit(nogil=True, cache=True)
def solve_location(work, m, gamma, total):
    """Solve the dual at one location whose latents stand in ``work.points``.

    Leaves a in ``work.a``, the indices of the free vectors in ``work.free`` and the factor of their system.

    Returns
    -------
    offset : float
        The multiplier of the centred problem: scikit-learn's offset less `total`.
    gap : float
        KKT gap, absolute.
    n : int
        Number of free vectors.
    """
    points, rows, known, a, g, no_gain, no_give, score, free, factor, rhs, mask = work
    row_mean = _start(points, rows, known, a, g, no_gain, no_give, score, m, total, gamma, mask)
    coarse = _COARSE * row_mean
    _pair_steps(points, rows, known, a, g, no_gain, no_give, gamma, coarse, 100 * m, mask)
    n = 0
    for i in range(m):
        n += 0.0 < a[i] < 1.0
    if n > _MANY_FREE:
        _pair_steps(points, rows, known, a, g, no_gain, no_give, gamma, 0.1 * coarse, 100 * m, mask)
    fine = 0.01 * _FINE * 2.0 / m * row_mean
    ridge = _RIDGE * row_mean
    n = _polish(points, rows, known, a, g, no_gain, no_give, free, factor, rhs, m, gamma, fine, ridge, mask)
    n = _spend_exactly(a, free, m, n, total)
    for i in range(m):
        no_gain[i] = 0.0 if a[i] < 1.0 else _HUGE
        no_give[i] = 0.0 if a[i] > 0.0 else _HUGE
    _fresh_gradient(rows, a, g, m)
    giver, taker = _extremes(g, no_gain, no_give, mask)
    bounded = no_gain[taker] > 0.0
    gap = 0.0 if bounded else max(g[giver] - g[taker], 0.0)
    if n > 0:
        offset = 0.0
        for i in range(n):
            offset += g[free[i]]
        return offset / n, gap, n
    # No free vector: any value between the bounded ones will do, and LIBSVM takes the middle.
    return g[giver] if bounded else 0.5 * (g[giver] + g[taker]), gap, n


@njit(nogil=True, cache=True)
def _aligned(n, width):
    """Zeros (n, width) that begin at a cache line, as whole vectors load fastest from there."""
    raw = np.zeros(n * width + _LANES)
    first = (-raw.ctypes.data % (8 * _LANES)) // 8
    return raw[first : first + n * width].reshape(n, width)


@njit(nogil=True, cache=True)
def make_workspace(m, dimension):
    width = (m + _LANES - 1) // _LANES * _LANES
    mask = np.int64(1)
    while mask < width:
        mask *= 2
    state = _aligned(5, width)
    return Workspace(
        _aligned(dimension, width),
        _aligned(m, width),
        np.zeros(m, np.bool_),
        state[0],
        state[1],
        state[2],
        state[3],
        state[4],
        np.zeros(m, np.int64),
        _aligned(m, width),
        np.zeros(m),
        mask - 1,
    )


@njit(nogil=True, cache=True)
def solve_batch(latents, gamma, total, a, offset, gap, free):
    """`solve_location` for (B, m, d) latents in float64; fills a (B, m), offset, gap (B,), free (B, m)."""
    batch, m, dimension = latents.shape
    work = make_workspace(m, dimension)
    for b in range(batch):
        for i in range(m):
            for k in range(dimension):
                work.points[k, i] = latents[b, i, k]
        offset[b], gap[b], _ = solve_location(work, m, gamma[b], total)
        for i in range(m):
            a[b, i] = work.a[i]
            free[b, i] = 0.0 < work.a[i] < 1.0


@njit(nogil=True, cache=True)
def spent_mass(nu, m):
    """nu*m, the sum of a; an integer when rounding alone keeps it from one."""
    total = nu * m
    nearest = np.round(total)
    return nearest if abs(total - nearest) < 1e-9 and nearest > 0 else total


@njit(nogil=True, cache=True, fastmath=_FAST)
def _adjoint(work, n, gamma, g_offset, u):
    """Solve ``K_FF u + w 1 = g_F, sum(u) = -g_offset`` with the factor that `_polish` left; u stands in for g on entry.

    Without free vectors a is locally constant, and the offset follows the two bounded vectors that it lies between.
    """
    free, rows, rhs = work.free, work.rows, work.rhs
    if n == 0:
        giver, taker = _extremes(work.g, work.no_gain, work.no_give, work.mask)
        u[:] = 0.0
        if work.no_gain[taker] > 0.0:
            u[giver] = -g_offset
            return
        if not work.known[taker]:
            _centred_kernel(work.points, work.points, taker, gamma, rows, taker)
            work.known[taker] = True
        u[giver] -= 0.5 * g_offset
        u[taker] -= 0.5 * g_offset
        return
    size = n - 1
    pivot = free[size]
    for i in range(size):
        rhs[i] = u[free[i]] - u[pivot] + g_offset * rows[pivot, free[i]]
    _substitute(work.factor, size, rhs)
    u[:] = 0.0
    last = -g_offset
    for i in range(size):
        u[free[i]] = rhs[i]
        last -= rhs[i]
    u[pivot] = last


@njit(nogil=True, cache=True, fastmath=_FAST)
def loss_batch(sv, rest, gamma, nu, by_scale, expander, compactor, want_gradient, loss, grad_sv, grad_rest):
    """Guidance loss and its gradients at every location; the equations stand in `ocsvm_loss`.

    sv (B, m, d), rest (B, q, d), gamma (B,), float64. `by_scale`: gamma is 1/(d*variance) of sv and is differentiated.
    Fills loss (B,), and if wanted grad_sv and grad_rest, which come as zeros.
    """
    batch, m, dimension = sv.shape
    q = rest.shape[1]
    total = spent_mass(nu, m)
    work = make_workspace(m, dimension)
    width = (q + _LANES - 1) // _LANES * _LANES
    points = _aligned(dimension, width)
    rows = _aligned(m, width)
    decision = np.empty(width)
    weight = np.zeros(width)
    u = np.zeros(work.g.shape[0])
    pull_rest = _aligned(dimension, width)
    mean = np.empty(dimension)
    support = np.empty(m, np.int64)
    weights = np.empty(m)
    for b in range(batch):
        # Only differences count; without the common part of the latents the sums below keep their digits.
        for k in range(dimension):
            mean[k] = 0.0
        for i in range(m):
            for k in range(dimension):
                mean[k] += sv[b, i, k] / m
        for i in range(m):
            for k in range(dimension):
                work.points[k, i] = sv[b, i, k] - mean[k]
        for i in range(q):
            for k in range(dimension):
                points[k, i] = rest[b, i, k] - mean[k]
        offset, _, n = solve_location(work, m, gamma[b], total)
        a = work.a
        n_support = 0
        for i in range(m):
            if a[i] > 0.0:
                support[n_support] = i
                weights[n_support] = a[i]
                n_support += 1
                _centred_kernel(points, work.points, i, gamma[b], rows, i)
        for j in range(width):
            decision[j] = -offset
        _add_rows(decision, weights, support, n_support, rows)
        value = 0.0
        outside = 0.0
        for j in range(q):
            out = 1.0 if decision[j] < 0.0 else 0.0
            value -= out * decision[j]
            weight[j] = out / nu
            outside += weight[j]
        loss[b] = value / nu
        if not want_gradient or outside == 0.0:
            continue

        # Gradient to a on the free set, and through the solution to the kernel among sv.
        u[:] = 0.0
        for f in range(n):
            i = work.free[f]
            g_a = 0.0
            for j in range(q):
                g_a -= weight[j] * rows[i, j]
            u[i] = g_a
        _adjoint(work, n, gamma[b], outside, u)
        n_involved = n_support
        for i in range(m):
            if u[i] != 0.0 and a[i] == 0.0:
                support[n_involved] = i
                n_involved += 1
        for s in range(n_involved):
            i = support[s]
            for t in range(n_involved):
                j = support[t]
                pair = 2.0 * gamma[b] * (u[i] * a[j] + a[i] * u[j]) * (1.0 + work.rows[i, j])
                for k in range(dimension):
                    grad_sv[b, i, k] += pair * (sv[b, i, k] - sv[b, j, k])

        # The kernel between sv and rest, as it stands in F: each pair pulls on both its ends.
        pull_rest[:] = 0.0
        for s in range(n_support):
            i = support[s]
            for j in range(width):
                rows[i, j] = 2.0 * gamma[b] * a[i] * weight[j] * (1.0 + rows[i, j])
            for k in range(dimension):
                centre = work.points[k, i]
                pulled = 0.0
                for j in range(width):
                    towards = rows[i, j] * (points[k, j] - centre)
                    pull_rest[k, j] += towards
                    pulled += towards
                grad_sv[b, i, k] -= pulled
        for j in range(q):
            for k in range(dimension):
                grad_rest[b, j, k] = pull_rest[k, j]

        if by_scale:
            _through_gamma(work.points, points, sv[b], gamma[b], grad_sv[b], grad_rest[b])
        for i in range(m):
            for k in range(dimension):
                grad_sv[b, i, k] *= expander
        for j in range(q):
            for k in range(dimension):
                grad_rest[b, j, k] *= compactor


@njit(nogil=True, cache=True)
def _through_gamma(points, rest_points, sv, gamma, grad_sv, grad_rest):
    """Add what gamma = 1/(d*variance) sends back to sv.

    The loss knows latents and gamma only as gamma*|difference|^2, so dL/dgamma = <z, dL/dz> / (2 gamma).
    """
    m, dimension = sv.shape
    radial = 0.0
    for i in range(m):
        for k in range(dimension):
            radial += points[k, i] * grad_sv[i, k]
    for j in range(grad_rest.shape[0]):
        for k in range(dimension):
            radial += rest_points[k, j] * grad_rest[j, k]
    mean = sv.mean()
    variance = ((sv - mean) ** 2).mean()
    if variance == 0.0:
        return
    for i in range(m):
        for k in range(dimension):
            grad_sv[i, k] -= radial * (sv[i, k] - mean) / (variance * m * dimension)


@njit(nogil=True, cache=True, fastmath=_EXACT)
def widen_half(bits, out):
    """float16, given as uint16, to float32: finite numbers exactly, all others to NaN."""
    for i in range(bits.shape[0]):
        word = np.uint32(bits[i])
        # The fraction and exponent in their float32 places are 2^-112 of the number.
        size = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
        sign = np.float32(-1.0) if word & np.uint32(0x8000) else np.float32(1.0)
        out[i] = np.float32(np.nan) if (word & np.uint32(0x7C00)) == np.uint32(0x7C00) else sign * size


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _poisoned(points):
    """Whether any number is NaN or infinite."""
    poison = 0.0
    for k in range(points.shape[0]):
        for j in range(points.shape[1]):
            poison += points[k, j] * 0.0
    return poison != 0.0


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _state(latents, s, p):
    """Of the latents of subject s at location p: 0 all finite; 1 all NaN, which means missing; 2 anything else."""
    poison = 0.0
    for k in range(latents.shape[2]):
        poison += latents[s, p, k] * 0.0
    if poison == 0.0:
        return 0
    for k in range(latents.shape[2]):
        if not np.isnan(latents[s, p, k]):
            return 2
    return 1


@njit(nogil=True, cache=True)
def fit_block(block, nu, gamma, by_scale, a, offset, width, count):
    """Fit one detector at each of n locations of block (S, n, d).

    Subjects whose latents are all NaN at a location are left out there. Fills a (n, S), offset (n,) (centred), width
    (n,) (gamma) and count (n,): the subjects at a location, or -1 if a latent there is not finite otherwise.
    """
    subjects, n, dimension = block.shape
    work = make_workspace(subjects, dimension)
    present = np.empty(subjects, np.int64)
    for p in range(n):
        for s in range(subjects):
            present[s] = s
            for k in range(dimension):
                work.points[k, s] = block[s, p, k]
        m = subjects
        broken = False
        if _poisoned(work.points):
            m = 0
            work.points[:] = 0.0
            for s in range(subjects):
                state = _state(block, s, p)
                broken |= state == 2
                if state == 0:
                    for k in range(dimension):
                        work.points[k, m] = block[s, p, k]
                    present[m] = s
                    m += 1
        count[p] = -1 if broken else m
        if broken or m == 0:
            continue
        width[p] = _scale_gamma(work.points, m) if by_scale else gamma
        offset[p], _, _ = solve_location(work, m, width[p], spent_mass(nu, m))
        a[p] = 0.0
        for i in range(m):
            a[p, present[i]] = work.a[i]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _scale_gamma(points, m):
    """1/(d*variance) over all numbers of the first m columns; 1 where they are all equal."""
    dimension = points.shape[0]
    total = 0.0
    for k in range(dimension):
        for i in range(m):
            total += points[k, i]
    mean = total / (m * dimension)
    squares = 0.0
    for k in range(dimension):
        for i in range(m):
            squares += (points[k, i] - mean) ** 2
    return m / squares if squares > 0.0 else 1.0


@njit(nogil=True, cache=True)
def gather_support(block, a, vectors, coef):
    """Copy the latents with a > 0, location by location, to vectors (N, d) and their a to coef (N,)."""
    subjects, n, dimension = block.shape
    at = 0
    for p in range(n):
        for s in range(subjects):
            if a[p, s] > 0.0:
                for k in range(dimension):
                    vectors[at, k] = block[s, p, k]
                coef[at] = a[p, s]
                at += 1


@njit(nogil=True, cache=True)
def score_block(latents, vectors, coef, start, offset, gamma, out, broken):
    """Decision function F of n detectors for latents (N, n, d): out (N, n).

    Detector p owns the rows start[p] to start[p + 1] of vectors and coef. Latents that are all NaN get NaN; broken (n,)
    marks locations with a latent that is not finite otherwise.
    """
    subjects, n, dimension = latents.shape
    most = 0
    for p in range(n):
        most = max(most, start[p + 1] - start[p])
    most = (most + _LANES - 1) // _LANES * _LANES
    points = _aligned(dimension, most)
    row = _aligned(1, most)
    weight = np.zeros(most)
    point = np.empty((dimension, 1))
    for p in range(n):
        first = start[p]
        m = start[p + 1] - first
        for i in range(m):
            weight[i] = coef[first + i]
            for k in range(dimension):
                points[k, i] = vectors[first + i, k]
        for i in range(m, most):
            weight[i] = 0.0
        for s in range(subjects):
            state = _state(latents, s, p)
            if state != 0:
                out[s, p] = np.nan
                broken[p] |= state == 2
                continue
            for k in range(dimension):
                point[k, 0] = latents[s, p, k]
            _centred_kernel(points, point, 0, gamma[p], row, 0)
            out[s, p] = _dot(weight, row) - offset[p]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _dot(weight, row):
    total = 0.0
    for j in range(weight.shape[0]):
        total += weight[j] * row[0, j]
    return total
