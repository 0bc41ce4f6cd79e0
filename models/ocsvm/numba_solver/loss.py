"""Guidance loss and its gradient at every location; for the equations see `voxout.models.ocsvm.guidance_loss`.

The gradient is a sum over pairs of latents, with symmetric weights P_ij among sv and weights W_ji between rest j and
sv i. With transposed points and rows of weights, it is ``points @ weights - reach * points`` for all of sv.
"""

from collections import namedtuple

import numpy as np

from .active_set import substitute
from .jit import aligned, allocating, inner, whole_lanes
from .kernel_rows import add_rows, kernel_row, row_dot
from .smo import extremes
from .solve import solve_location
from .workspace import make_workspace

Pairs = namedtuple(
    "Pairs",
    "mean points rest_points support outside a u u_all decision is_outside cross counting "
    "near pulling weight pull rest_pull reach rest_reach",
)
Pairs.__doc__ = """Scratch memory of the loss for one location, with m latents sv and q latents rest of size d.

points (d, width), rest_points (d, rest_width): centred latents, and mean (d,), which was subtracted; support, a, u:
packed indices, coefficients and adjoint of the support vectors; outside: packed indices of the outliers of rest; u_all:
the adjoint of all of sv; decision, is_outside (rest_width,): decision function of rest, and 1 for outliers; cross (m,
rest_width): kernel minus 1, then the weights, between packed sv and rest; counting: 0, 1, 2, ...; reach, rest_reach:
sums of the weights. Memory of matrices that differ in size between locations: near: packed points; pulling: outliers
and packed points; weight: between these and the packed points; pull, rest_pull: products of points and weights.
"""


@allocating
def _make_pairs(m, q, dimension):
    """Allocate `Pairs`."""
    width, rest_width = whole_lanes(m), whole_lanes(q)
    return Pairs(
        np.empty(dimension),
        aligned(dimension, width),
        aligned(dimension, rest_width),
        np.empty(m, np.int64),
        np.empty(q, np.int64),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.empty(rest_width),
        np.zeros(rest_width),
        aligned(m, rest_width),
        np.arange(m),
        np.empty(dimension * m),
        np.empty(dimension * (q + m)),
        np.empty((q + m) * m),
        np.empty(dimension * m),
        np.empty((dimension, rest_width)),
        np.empty(width),
        np.empty(rest_width),
    )


@inner
def _adjoint(work, points, n, gamma, g_offset, u):
    """Solve ``K_FF u + w 1 = g_F, sum(u) = -g_offset`` with the factor kept by `active_set`; u is g on entry.

    Without free vectors, a is locally constant and the offset is the midpoint of the gradients of two vectors at their
    bounds.
    """
    free, rows, step = work.free, work.rows, work.step
    if n == 0:
        giver, taker = extremes(work.g, work.no_gain, work.no_give, work.mask)
        u[:] = 0.0
        if work.no_gain[taker] > 0.0:
            u[giver] = -g_offset
            return
        if not work.known[taker]:
            kernel_row(points, points.shape[1], points, taker, gamma, rows, taker)
            work.known[taker] = True
        u[giver] -= 0.5 * g_offset
        u[taker] -= 0.5 * g_offset
        return
    size = n - 1
    pivot = free[size]
    for i in range(size):
        step[i] = u[free[i]] - u[pivot] + g_offset * rows[pivot, free[i]]
    substitute(work, size)
    u[:] = 0.0
    last = -g_offset
    for i in range(size):
        u[free[i]] = step[i]
        last -= step[i]
    u[pivot] = last


@inner
def _gather_centred(pairs, sv, rest):
    """Copy sv and rest to columns. Only differences matter; without the mean of sv, the sums below are accurate."""
    mean = pairs.mean
    m, dimension = sv.shape
    for k in range(dimension):
        mean[k] = 0.0
    for i in range(m):
        for k in range(dimension):
            mean[k] += sv[i, k] / m
    for i in range(m):
        for k in range(dimension):
            pairs.points[k, i] = sv[i, k] - mean[k]
    for j in range(rest.shape[0]):
        for k in range(dimension):
            pairs.rest_points[k, j] = rest[j, k] - mean[k]


@inner
def _score_rest(pairs, work, m, q, gamma, offset):
    """Pack the support vectors and the outliers of rest; returns their numbers and nu times the loss."""
    a, cross, decision, is_outside = pairs.a, pairs.cross, pairs.decision, pairs.is_outside
    rest_width = decision.shape[0]
    n_support = 0
    for j in range(rest_width):
        decision[j] = -offset
    for i in range(m):
        if work.a[i] > 0.0:
            kernel_row(pairs.rest_points, rest_width, pairs.points, i, gamma, cross, n_support)
            pairs.support[n_support] = i
            a[n_support] = work.a[i]
            n_support += 1
    add_rows(decision, rest_width, a, pairs.counting, n_support, cross)
    n_outside = 0
    value = 0.0
    for j in range(q):
        is_outside[j] = 0.0
        if decision[j] < 0.0:
            is_outside[j] = 1.0
            pairs.outside[n_outside] = j
            n_outside += 1
            value -= decision[j]
    return n_support, n_outside, value


@inner
def _differentiate_dual(pairs, work, n_free, n_support, n_outside, gamma, nu):
    """Gradient with respect to a on the free set, and through the solution with respect to the kernel among sv."""
    u_all, is_outside = pairs.u_all, pairs.is_outside
    u_all[:] = 0.0
    for s in range(n_support):
        if pairs.a[s] < work.upper[pairs.support[s]]:
            u_all[pairs.support[s]] = -row_dot(is_outside, is_outside.shape[0], pairs.cross, s) / nu
    _adjoint(work, pairs.points, n_free, gamma, n_outside / nu, u_all)


@inner
def _pack_adjoint(pairs, work, m, n_support):
    """Pack the vectors for which only u is not 0 behind the support vectors; returns the number of both."""
    n_involved = n_support
    for i in range(m):
        if pairs.u_all[i] != 0.0 and work.a[i] == 0.0:
            pairs.support[n_involved] = i
            pairs.a[n_involved] = 0.0
            pairs.cross[n_involved] = 0.0
            n_involved += 1
    return n_involved


@inner
def _fill_weights(pairs, work, n_outside, twice, near, pulling, weight):
    """Fill near, pulling and weight: W of the outliers above P of the packed vectors among themselves."""
    a, u, cross, support, outside = pairs.a, pairs.u, pairs.cross, pairs.support, pairs.outside
    dimension, n_involved = near.shape
    for k in range(dimension):
        for o in range(n_outside):
            pulling[k, o] = pairs.rest_points[k, outside[o]]
        for s in range(n_involved):
            near[k, s] = pairs.points[k, support[s]]
            pulling[k, n_outside + s] = near[k, s]
    for o in range(n_outside):
        j = outside[o]
        for s in range(n_involved):
            weight[o, s] = cross[s, j]
    for s in range(n_involved):
        u[s] = pairs.u_all[support[s]]
    for t in range(n_involved):
        i = support[t]
        for s in range(n_involved):
            weight[n_outside + t, s] = work.rows[i, support[s]]
        for s in range(n_involved):
            weight[n_outside + t, s] = twice * (u[t] * a[s] + a[t] * u[s]) * (1.0 + weight[n_outside + t, s])


@inner
def _write_gradients(pairs, near, pull, weight, n_outside, expander, compactor, grad_sv, grad_rest):
    """Fill the weighted gradients; returns the sum of the products of the latents and their unweighted gradients."""
    cross, reach, rest_reach = pairs.cross, pairs.reach, pairs.rest_reach
    dimension, n_involved = near.shape
    reach[:n_involved] = 0.0
    for t in range(weight.shape[0]):
        for s in range(n_involved):
            reach[s] += weight[t, s]
    rest_reach[:] = 0.0
    for s in range(n_involved):
        for j in range(rest_reach.shape[0]):
            rest_reach[j] += cross[s, j]
    along = 0.0
    for s in range(n_involved):
        i = pairs.support[s]
        for k in range(dimension):
            value = reach[s] * near[k, s] - pull[k, s]
            along += value * near[k, s]
            grad_sv[i, k] = expander * value
    for o in range(n_outside):
        j = pairs.outside[o]
        for k in range(dimension):
            value = rest_reach[j] * pairs.rest_points[k, j] - pairs.rest_pull[k, j]
            along += value * pairs.rest_points[k, j]
            grad_rest[j, k] = compactor * value
    return along


@allocating
def loss_batch(sv, rest, weights, gamma, nu, by_scale, expander, compactor, want_gradient, loss, grad_sv, grad_rest):
    """Guidance loss and its weighted gradients.

    sv (B, m, d), rest (B, q, d), weights (B, m) of sv, gamma (B,), float64. `by_scale`: gamma is 1/(d*variance) of sv
    and is differentiated. Fills loss (B,) and, if `want_gradient`, grad_sv and grad_rest, which must be zeros on entry.
    """
    batch, m, dimension = sv.shape
    q = rest.shape[1]
    work, pairs = make_workspace(m), _make_pairs(m, q, dimension)
    cross, is_outside = pairs.cross, pairs.is_outside
    for b in range(batch):
        _gather_centred(pairs, sv[b], rest[b])
        unit, _, offset, _, n_free = solve_location(work, pairs.points, weights[b], m, gamma[b], nu)
        n_support, n_outside, value = _score_rest(pairs, work, m, q, gamma[b], offset)
        loss[b] = unit * (value / nu)
        if not want_gradient or n_outside == 0:
            continue
        twice = 2.0 * gamma[b]
        _differentiate_dual(pairs, work, n_free, n_support, n_outside, gamma[b], nu)
        for s in range(n_support):
            scale = twice / nu * pairs.a[s]
            for j in range(is_outside.shape[0]):
                cross[s, j] = scale * is_outside[j] * (1.0 + cross[s, j])
        n_involved = _pack_adjoint(pairs, work, m, n_support)
        n_pulling = n_outside + n_involved
        near = pairs.near[: dimension * n_involved].reshape(dimension, n_involved)
        pull = pairs.pull[: dimension * n_involved].reshape(dimension, n_involved)
        pulling = pairs.pulling[: dimension * n_pulling].reshape(dimension, n_pulling)
        weight = pairs.weight[: n_pulling * n_involved].reshape(n_pulling, n_involved)
        _fill_weights(pairs, work, n_outside, twice, near, pulling, weight)
        np.dot(pulling, weight, pull)
        np.dot(near, cross[:n_involved], pairs.rest_pull)
        expand, compact = unit * expander, unit * compactor
        along = _write_gradients(pairs, near, pull, weight, n_outside, expand, compact, grad_sv[b], grad_rest[b])
        if by_scale:
            _through_gamma(sv[b], expand * along, grad_sv[b])


@inner
def _through_gamma(sv, along, grad_sv):
    """Add the gradient through gamma = 1/(d*variance) to grad_sv.

    The loss depends on latents and gamma only through gamma*|difference|^2, so
    dL/dgamma = <z, dL/dz> / (2 gamma) = along / (2 gamma).
    """
    m, dimension = sv.shape
    mean = 0.0
    for i in range(m):
        for k in range(dimension):
            mean += sv[i, k]
    mean /= m * dimension
    squares = 0.0
    for i in range(m):
        for k in range(dimension):
            squares += (sv[i, k] - mean) ** 2
    if squares == 0.0:
        return
    share = along / squares
    for i in range(m):
        for k in range(dimension):
            grad_sv[i, k] -= share * (sv[i, k] - mean)
