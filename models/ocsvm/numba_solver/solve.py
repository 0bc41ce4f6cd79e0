"""Solution of the dual at one location, and at a batch of locations."""

import numpy as np

from .active_set import fresh_gradient, newton_steps
from .jit import aligned, allocating, fastmath, strict, whole_lanes
from .smo import extremes, smo_steps, start
from .workspace import HUGE, SNAP, make_workspace

# KKT gaps at which SMO and the Newton steps stop, and the ridge of the Newton system. The first and the last are in
# units of the mean of one row of 1 - K, the second in units of s.
_COARSE = 3e-3
_FINE = 1e-11
_RIDGE = 1e-13


@strict
def dual_mass(nu, m):
    """nu*m, the sum of a; rounded to an integer if it differs from it by rounding error only."""
    total = nu * m
    nearest = np.round(total)
    return nearest if abs(total - nearest) < 1e-9 and nearest > 0 else total


@strict
def _project_to_mass(work, m, n, total):
    """Remove the rounding error of the sum of a; a single free vector that reaches a bound is no longer free."""
    a = work.a
    if n > 0:
        last = work.free[n - 1]
        value = total
        for i in range(m):
            if i != last:
                value -= a[i]
        if n == 1 and not SNAP < value < 1.0 - SNAP:
            a[last] = np.round(value)
            n = 0
        else:
            a[last] = min(max(value, 0.0), 1.0)
    for i in range(m):
        work.no_gain[i] = 0.0 if a[i] < 1.0 else HUGE
        work.no_give[i] = 0.0 if a[i] > 0.0 else HUGE
    return n


@fastmath
def solve_location(work, points, m, gamma, total):
    """Solve the dual for the first m columns of points (d, width).

    ``work`` then holds a, the indices of the free vectors (``work.free``) and the factor of their system.

    Returns
    -------
    offset : float
        Multiplier of the centred problem: scikit-learn's offset minus `total`.
    gap : float
        Absolute KKT gap.
    n : int
        Number of free vectors.
    """
    row_mean = start(work, points, m, total, gamma)
    smo_steps(work, points, gamma, _COARSE * row_mean, 100 * m)
    n = newton_steps(work, points, m, gamma, _FINE * 2.0 / m * row_mean, _RIDGE * row_mean)
    n = _project_to_mass(work, m, n, total)
    fresh_gradient(work, m)
    g = work.g
    giver, taker = extremes(g, work.no_gain, work.no_give, work.mask)
    bounded = work.no_gain[taker] > 0.0
    gap = 0.0 if bounded else max(g[giver] - g[taker], 0.0)
    if n > 0:
        offset = 0.0
        for i in range(n):
            offset += g[work.free[i]]
        return offset / n, gap, n
    # Without free vectors, any value between those of the bounded ones is valid; LIBSVM takes the midpoint.
    return g[giver] if bounded else 0.5 * (g[giver] + g[taker]), gap, n


@allocating
def solve_batch(latents, gamma, total, a, offset, gap, free):
    """Apply `solve_location` to float64 latents (B, m, d); fills a (B, m), offset and gap (B,), free (B, m)."""
    batch, m, dimension = latents.shape
    work = make_workspace(m)
    points = aligned(dimension, whole_lanes(m))
    for b in range(batch):
        for i in range(m):
            for k in range(dimension):
                points[k, i] = latents[b, i, k]
        offset[b], gap[b], _ = solve_location(work, points, m, gamma[b], total)
        for i in range(m):
            a[b, i] = work.a[i]
            free[b, i] = 0.0 < work.a[i] < 1.0
