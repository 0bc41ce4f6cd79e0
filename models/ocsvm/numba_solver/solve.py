"""Solution of the dual at one location, and at a batch of locations."""

import numpy as np

from .active_set import fresh_gradient, newton_steps
from .jit import aligned, allocating, fastmath, strict, whole_lanes
from .smo import extremes, smo_steps, start
from .workspace import HUGE, SNAP, make_workspace, set_bounds

# KKT gaps at which SMO and the Newton steps stop, and the ridge of the Newton system. The first and the last are in
# units of the mean of one row of 1 - K, the second in units of s.
_COARSE = 3e-3
_FINE = 1e-11
_RIDGE = 1e-13


@strict
def dual_mass(nu, weight):
    """Sum of a, nu times the sum of the weights; rounded to an integer if it differs by rounding error only."""
    total = nu * weight
    nearest = np.round(total)
    return nearest if abs(total - nearest) < 1e-9 and nearest > 0 else total


@strict
def _project_to_mass(work, m, n, total):
    """Remove the rounding error of the sum of a; a single free vector that reaches a bound is no longer free."""
    a, upper = work.a, work.upper
    if n > 0:
        last = work.free[n - 1]
        value = total
        for i in range(m):
            if i != last:
                value -= a[i]
        if n == 1 and not SNAP < value < upper[last] - SNAP:
            a[last] = 0.0 if value <= SNAP else upper[last]
            n = 0
        else:
            a[last] = min(max(value, 0.0), upper[last])
    for i in range(m):
        work.no_gain[i] = 0.0 if a[i] < upper[i] else HUGE
        work.no_give[i] = 0.0 if a[i] > 0.0 else HUGE
    return n


@fastmath
def solve_location(work, points, weights, m, gamma, nu):
    """Solve the dual for the first m columns of points (d, width) and their weights, of which one is above 0.

    All is in the unit of `set_bounds`. ``work`` then holds a, the indices of the free vectors (``work.free``) and
    the factor of their system.

    Returns
    -------
    unit : float
    total : float
        Sum of a.
    offset : float
        Multiplier of the centred problem: scikit-learn's offset minus `total`.
    gap : float
        Absolute KKT gap.
    n : int
        Number of free vectors.
    """
    unit, weight, present = set_bounds(work, weights, m)
    total = dual_mass(nu, weight)
    row_mean = start(work, points, m, present, total, gamma)
    smo_steps(work, points, gamma, _COARSE * row_mean, 100 * m)
    n = newton_steps(work, points, m, gamma, _FINE * 2.0 / present * row_mean, _RIDGE * row_mean)
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
        return unit, total, offset / n, gap, n
    # Without free vectors, any value between those of the bounded ones is valid; LIBSVM takes the midpoint.
    return unit, total, g[giver] if bounded else 0.5 * (g[giver] + g[taker]), gap, n


@allocating
def solve_batch(latents, weights, gamma, nu, a, offset, gap, free):
    """Apply `solve_location` to float64 latents (B, m, d) and weights (B, m), which may be rows of one array.

    Fills a (B, m), offset (B,), which is that of scikit-learn, gap (B,) and free (B, m).
    """
    batch, m, dimension = latents.shape
    work = make_workspace(m)
    points = aligned(dimension, whole_lanes(m))
    for b in range(batch):
        for i in range(m):
            for k in range(dimension):
                points[k, i] = latents[b, i, k]
        unit, total, centred, own_gap, _ = solve_location(work, points, weights[b], m, gamma[b], nu)
        offset[b], gap[b] = unit * (centred + total), unit * own_gap
        for i in range(m):
            a[b, i] = unit * work.a[i]
            free[b, i] = 0.0 < work.a[i] < work.upper[i]
