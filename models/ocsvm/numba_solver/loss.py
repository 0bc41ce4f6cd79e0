"""Guidance loss and its gradient at every location; for the equations see `voxout.models.ocsvm.guidance_loss`.

The gradient is a sum over pairs of latents, with symmetric weights P_ij among sv and weights W_ji between rest j and
sv i. With transposed points and rows of weights, it is ``points @ weights - reach * points`` for all of sv.
"""

import numpy as np

from .active_set import substitute
from .jit import aligned, allocating, fastmath, whole_lanes
from .kernel_rows import add_rows, kernel_row, row_dot
from .smo import extremes
from .solve import dual_mass, solve_location
from .workspace import make_workspace


@fastmath
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


@fastmath
def _gather_across(latents, mean, points):
    """Copy latents (n, d) minus their mean (d,) to the first n columns of points (d, width)."""
    for i in range(latents.shape[0]):
        for k in range(latents.shape[1]):
            points[k, i] = latents[i, k] - mean[k]


@allocating
def loss_batch(sv, rest, gamma, nu, by_scale, expander, compactor, want_gradient, loss, grad_sv, grad_rest):
    """Guidance loss and its weighted gradients.

    sv (B, m, d), rest (B, q, d), gamma (B,), float64. `by_scale`: gamma is 1/(d*variance) of sv and is differentiated.
    Fills loss (B,) and, if `want_gradient`, grad_sv and grad_rest, which must be zeros on entry.
    """
    batch, m, dimension = sv.shape
    q = rest.shape[1]
    total = dual_mass(nu, m)
    work = make_workspace(m)
    width, rest_width = whole_lanes(m), whole_lanes(q)
    mean = np.empty(dimension)
    points, rest_points = aligned(dimension, width), aligned(dimension, rest_width)
    # Packed arrays: support vectors with their a and u, and the outliers of rest.
    support, outside = np.empty(m, np.int64), np.empty(q, np.int64)
    a, u, u_all = np.zeros(width), np.zeros(width), np.zeros(width)
    decision, is_outside = np.empty(rest_width), np.zeros(rest_width)
    cross, counting = aligned(m, rest_width), np.arange(m)
    # Buffers for matrices whose sizes differ between locations.
    near_, pulling_, weight_ = np.empty(dimension * m), np.empty(dimension * (q + m)), np.empty((q + m) * m)
    pull_, rest_pull = np.empty(dimension * m), np.empty((dimension, rest_width))
    reach, rest_reach = np.empty(width), np.empty(rest_width)
    for b in range(batch):
        # Only differences matter; subtracting the mean keeps the sums below accurate.
        for k in range(dimension):
            mean[k] = 0.0
        for i in range(m):
            for k in range(dimension):
                mean[k] += sv[b, i, k] / m
        _gather_across(sv[b], mean, points)
        _gather_across(rest[b], mean, rest_points)
        offset, _, n = solve_location(work, points, m, gamma[b], total)

        n_support = 0
        for j in range(rest_width):
            decision[j] = -offset
        for i in range(m):
            if work.a[i] > 0.0:
                kernel_row(rest_points, rest_width, points, i, gamma[b], cross, n_support)
                support[n_support] = i
                a[n_support] = work.a[i]
                n_support += 1
        add_rows(decision, rest_width, a, counting, n_support, cross)
        n_outside = 0
        value = 0.0
        for j in range(q):
            is_outside[j] = 0.0
            if decision[j] < 0.0:
                is_outside[j] = 1.0
                outside[n_outside] = j
                n_outside += 1
                value -= decision[j]
        loss[b] = value / nu
        if not want_gradient or n_outside == 0:
            continue

        # Gradient with respect to a on the free set, and through the solution with respect to the kernel among sv.
        u_all[:] = 0.0
        for s in range(n_support):
            if a[s] < 1.0:
                u_all[support[s]] = -row_dot(is_outside, rest_width, cross, s) / nu
        _adjoint(work, points, n, gamma[b], n_outside / nu, u_all)

        # Weights of the pairs: rest and support vectors, and support vectors (with vectors for which only u is not 0)
        # among themselves.
        twice = 2.0 * gamma[b]
        for s in range(n_support):
            scale = twice / nu * a[s]
            for j in range(rest_width):
                cross[s, j] = scale * is_outside[j] * (1.0 + cross[s, j])
        n_involved = n_support
        for i in range(m):
            if u_all[i] != 0.0 and work.a[i] == 0.0:
                support[n_involved] = i
                a[n_involved] = 0.0
                cross[n_involved] = 0.0
                n_involved += 1
        n_pulling = n_outside + n_involved
        near = near_[: dimension * n_involved].reshape(dimension, n_involved)
        pulling = pulling_[: dimension * n_pulling].reshape(dimension, n_pulling)
        weight = weight_[: n_pulling * n_involved].reshape(n_pulling, n_involved)
        for k in range(dimension):
            for o in range(n_outside):
                pulling[k, o] = rest_points[k, outside[o]]
            for s in range(n_involved):
                near[k, s] = points[k, support[s]]
                pulling[k, n_outside + s] = near[k, s]
        for o in range(n_outside):
            j = outside[o]
            for s in range(n_involved):
                weight[o, s] = cross[s, j]
        for s in range(n_involved):
            u[s] = u_all[support[s]]
        for t in range(n_involved):
            i = support[t]
            for s in range(n_involved):
                weight[n_outside + t, s] = work.rows[i, support[s]]
            for s in range(n_involved):
                weight[n_outside + t, s] = twice * (u[t] * a[s] + a[t] * u[s]) * (1.0 + weight[n_outside + t, s])

        pull = pull_[: dimension * n_involved].reshape(dimension, n_involved)
        np.dot(pulling, weight, pull)
        np.dot(near, cross[:n_involved], rest_pull)
        reach[:n_involved] = 0.0
        for t in range(n_pulling):
            for s in range(n_involved):
                reach[s] += weight[t, s]
        rest_reach[:] = 0.0
        for s in range(n_involved):
            for j in range(rest_width):
                rest_reach[j] += cross[s, j]
        along = 0.0
        for s in range(n_involved):
            i = support[s]
            for k in range(dimension):
                value = reach[s] * near[k, s] - pull[k, s]
                along += value * near[k, s]
                grad_sv[b, i, k] = expander * value
        for o in range(n_outside):
            j = outside[o]
            for k in range(dimension):
                value = rest_reach[j] * rest_points[k, j] - rest_pull[k, j]
                along += value * rest_points[k, j]
                grad_rest[b, j, k] = compactor * value
        if by_scale:
            _through_gamma(sv[b], expander * along, grad_sv[b])


@fastmath
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
