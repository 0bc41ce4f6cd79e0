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
_COARSE = 1e-2
_FINE = 1e-9
_RIDGE = 1e-13
# A coefficient this near to a bound lies on it: else rounding would make up free vectors.
_SNAP = 1e-12

Workspace = namedtuple("Workspace", "points rows known a g no_gain no_give score free factor rhs")
Workspace.__doc__ = """Scratch memory for one location, used again for the next; `width` is m rounded up to whole lanes.

points (d, width), rows (m, width) of K - 1, known (m,): which rows are computed; a, g (width,); no_gain, no_give
(width,): 0 where a may grow (shrink), huge where it may not; free (m,): indices of the free vectors;
factor (m, m), rhs (m,): the Newton system.
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
def _distances(points, point, out):
    """Squared distances from `point` (d,) to the first columns of `points` (d, ...), as many as `out` has room for."""
    width = out.shape[0]
    for j in range(width):
        out[j] = 0.0
    for k in range(points.shape[0]):
        centre = point[k]
        for j in range(width):
            difference = points[k, j] - centre
            out[j] += difference * difference


@njit(nogil=True, cache=True, fastmath=_FAST)
def _centred_kernel(points, point, gamma, out):
    """K - 1 between `point` and the columns of `points`."""
    _distances(points, point, out)
    for j in range(out.shape[0]):
        out[j] = expm1_negative(gamma * out[j])


@njit(nogil=True, cache=True)
def _row(work, i, gamma):
    if not work.known[i]:
        _centred_kernel(work.points, work.points[:, i], gamma, work.rows[i])
        work.known[i] = True
    return work.rows[i]


@njit(nogil=True, cache=True)
def _set(work, i, value):
    work.a[i] = value
    work.no_gain[i] = 0.0 if value < 1.0 else _HUGE
    work.no_give[i] = 0.0 if value > 0.0 else _HUGE


@njit(nogil=True, cache=True, fastmath=_FAST)
def _add_row(g, weight, row):
    for j in range(g.shape[0]):
        g[j] += weight * row[j]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _extremes(g, no_gain, no_give):
    """Highest g among those that can give, lowest among those that can gain."""
    highest = -_HUGE
    lowest = _HUGE
    for j in range(g.shape[0]):
        highest = max(highest, g[j] - no_give[j])
        lowest = min(lowest, g[j] + no_gain[j])
    return highest, lowest


@njit(nogil=True, cache=True, fastmath=_FAST)
def _largest(values):
    best = -_HUGE
    for j in range(values.shape[0]):
        best = max(best, values[j])
    for j in range(values.shape[0]):
        if values[j] == best:
            return j
    return 0


@njit(nogil=True, cache=True, fastmath=_FAST)
def _start(work, m, total, gamma):
    """Fill from the outside: the points farthest from the mean get a = 1 until `total` is spent.

    Returns a lower bound of m/2 * s, with s the mean of 1 - K off the diagonal: the mean of a row of 1 - K is at most
    m/2 * s, as each pair occurs in two of the m rows.
    """
    dimension, width = work.points.shape
    score = work.score
    for j in range(width):
        work.a[j] = 0.0
        work.g[j] = 0.0
        work.no_gain[j] = 0.0 if j < m else _HUGE
        work.no_give[j] = _HUGE
        score[j] = 0.0
    for k in range(dimension):
        total_k = 0.0
        for j in range(m):
            total_k += work.points[k, j]
        centre = total_k / m
        for j in range(width):
            difference = work.points[k, j] - centre
            score[j] += difference * difference
    for j in range(m, width):
        score[j] = -_HUGE
    for j in range(m):
        work.known[j] = False
    left = total
    row_mean = 0.0
    while left > 0.0:
        i = _largest(score)
        score[i] = -_HUGE
        share = min(left, 1.0)
        _set(work, i, share)
        row = _row(work, i, gamma)
        _add_row(work.g, share, row)
        if row_mean == 0.0:
            for j in range(m):
                row_mean -= row[j]
            row_mean /= m
        left -= share
    return row_mean


@njit(nogil=True, cache=True, fastmath=_FAST)
def _pair_steps(work, gamma, tolerance, most):
    """Move mass along pairs until the KKT gap is below the tolerance."""
    g = work.g
    score = work.score
    for _ in range(most):
        highest, lowest = _extremes(g, work.no_gain, work.no_give)
        if highest - lowest <= tolerance:
            return
        giver = 0
        while g[giver] - work.no_give[giver] != highest:
            giver += 1
        row = work.rows[giver]
        best = 0.0
        for j in range(g.shape[0]):
            slope = max(highest - (g[j] + work.no_gain[j]), 0.0)
            score[j] = slope * slope / max(-row[j], 1e-300)
            best = max(best, score[j])
        taker = 0
        while score[taker] != best:
            taker += 1
        slope = highest - g[taker]
        step = slope / max(-2.0 * row[taker], 1e-300)
        give, room = work.a[giver], 1.0 - work.a[taker]
        step = min(step, give, room)
        _set(work, giver, give - step if give - step > _SNAP else 0.0)
        _set(work, taker, work.a[taker] + step if room - step > _SNAP else 1.0)
        other = _row(work, taker, gamma)
        for j in range(g.shape[0]):
            g[j] += step * (other[j] - row[j])


@njit(nogil=True, cache=True, fastmath=_FAST)
def _factorise(work, n, ridge):
    """Cholesky factor of K on the free set with its last vector eliminated.

    Q_ij = K_ij - K_ip - K_pj + K_pp is positive semidefinite as it stands, a Gram matrix of differences; the factor is
    kept as its transpose (upper, by rows).
    """
    free, rows, factor = work.free, work.rows, work.factor
    pivot = free[n]
    from_pivot = rows[pivot]
    for i in range(n):
        row = rows[free[i]]
        own = row[pivot]
        for j in range(i, n):
            factor[i, j] = row[free[j]] - own - from_pivot[free[j]]
        factor[i, i] += ridge
    for k in range(n):
        diagonal = np.sqrt(max(factor[k, k], ridge))
        inverse = 1.0 / diagonal
        factor[k, k] = inverse
        for j in range(k + 1, n):
            factor[k, j] *= inverse
        for i in range(k + 1, n):
            weight = factor[k, i]
            for j in range(i, n):
                factor[i, j] -= weight * factor[k, j]


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
def _polish(work, m, gamma, tolerance, ridge):
    """Newton steps on the free set, until the KKT gap is at rounding level.

    Each round either drops the first free vector that meets a bound, or, at the minimum over the free set, frees the
    worst violator among the bounded ones. Leaves the factor of the last free set. Returns the number of free vectors.
    """
    a, g, free = work.a, work.g, work.free
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
            _factorise(work, size, ridge)
            step = work.rhs
            for i in range(size):
                step[i] = g[pivot] - g[free[i]]
            _substitute(work.factor, size, step)
            last = 0.0
            for i in range(size):
                last -= step[i]
            step[size] = last
            length = 1.0
            for i in range(n):
                value = a[free[i]]
                if step[i] < 0.0 and value + length * step[i] <= _SNAP:
                    length = min(length, -value / step[i])
                    blocked = i
                elif step[i] > 0.0 and value + length * step[i] >= 1.0 - _SNAP:
                    length = min(length, (1.0 - value) / step[i])
                    blocked = i
            for i in range(n):
                index = free[i]
                if i == blocked:
                    bound = 0.0 if step[i] < 0.0 else 1.0
                    _add_row(g, bound - a[index], work.rows[index])
                    _set(work, index, bound)
                else:
                    _add_row(g, length * step[i], work.rows[index])
                    _set(work, index, min(max(a[index] + length * step[i], 0.0), 1.0))
        if blocked >= 0:
            for i in range(blocked, n - 1):
                free[i] = free[i + 1]
            n -= 1
            continue
        highest, lowest = _extremes(g, work.no_gain, work.no_give)
        if highest - lowest <= tolerance:
            break
        level = 0.0
        spread_low, spread_high = _HUGE, -_HUGE
        for i in range(n):
            level += g[free[i]]
            spread_low = min(spread_low, g[free[i]])
            spread_high = max(spread_high, g[free[i]])
        if n > 0 and highest <= spread_high and lowest >= spread_low:
            # No violator: the gap is rounding on the free set. One more step from a fresh gradient is all there is.
            if refined == 2:
                break
            refined += 1
            _fresh_gradient(work, m)
            continue
        takes = n == 0
        gives = n == 0
        if n > 0:
            level /= n
            takes = level - lowest >= highest - level
            gives = not takes
        if gives:
            i = 0
            while g[i] - work.no_give[i] != highest:
                i += 1
            free[n] = i
            n += 1
        if takes:
            i = 0
            while g[i] + work.no_gain[i] != lowest:
                i += 1
            _row(work, i, gamma)
            free[n] = i
            n += 1
    return n


@njit(nogil=True, cache=True)
def _spend_exactly(work, m, n, total):
    """Take the rounding out of the sum of a; a lone free vector that this puts on a bound is free no longer."""
    if n == 0:
        return 0
    last = work.free[n - 1]
    value = total
    for i in range(m):
        if i != last:
            value -= work.a[i]
    if n == 1 and not _SNAP < value < 1.0 - _SNAP:
        _set(work, last, np.round(value))
        return 0
    work.a[last] = min(max(value, 0.0), 1.0)
    return n


@njit(nogil=True, cache=True)
def _fresh_gradient(work, m):
    work.g[:] = 0.0
    for i in range(m):
        if work.a[i] > 0.0:
            _add_row(work.g, work.a[i], work.rows[i])


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
    row_mean = _start(work, m, total, gamma)
    _pair_steps(work, gamma, _COARSE * row_mean, 100 * m)
    scale = 2.0 / m * row_mean
    n = _polish(work, m, gamma, 0.01 * _FINE * scale, _RIDGE * row_mean)
    n = _spend_exactly(work, m, n, total)
    _fresh_gradient(work, m)
    highest, lowest = _extremes(work.g, work.no_gain, work.no_give)
    gap = max(highest - lowest, 0.0)
    if n > 0:
        offset = 0.0
        for i in range(n):
            offset += work.g[work.free[i]]
        return offset / n, gap, n
    # No free vector: any value between the bounded ones will do; scikit-learn takes the middle.
    if lowest == _HUGE:
        return highest, gap, n
    return 0.5 * (highest + lowest), gap, n


@njit(nogil=True, cache=True)
def make_workspace(m, dimension):
    width = (m + _LANES - 1) // _LANES * _LANES
    return Workspace(
        np.zeros((dimension, width)),
        np.empty((m, width)),
        np.zeros(m, np.bool_),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.empty(m, np.int64),
        np.empty((m, m)),
        np.empty(m),
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
    free = work.free
    if n == 0:
        highest, lowest = _extremes(work.g, work.no_gain, work.no_give)
        upper, lower = 0, 0
        while work.g[upper] - work.no_give[upper] != highest:
            upper += 1
        u[:] = 0.0
        if lowest == _HUGE:
            u[upper] = -g_offset
            return
        while work.g[lower] + work.no_gain[lower] != lowest:
            lower += 1
        _row(work, lower, gamma)
        u[upper] -= 0.5 * g_offset
        u[lower] -= 0.5 * g_offset
        return
    size = n - 1
    pivot = free[size]
    rhs = work.rhs
    for i in range(size):
        rhs[i] = u[free[i]] - u[pivot] + g_offset * work.rows[pivot, free[i]]
    _substitute(work.factor, size, rhs)
    u[:] = 0.0
    last = -g_offset
    for i in range(size):
        u[free[i]] = rhs[i]
        last -= rhs[i]
    u[pivot] = last


@njit(nogil=True, cache=True, fastmath=_FAST)
def _pull(points, i, weights, targets, n, scale, out):
    """Add ``scale * sum_j weights_j (z_i - t_j)`` to out (d,): what the squared distances to t send back to z_i."""
    for k in range(out.shape[0]):
        centre = points[k, i]
        pulled = 0.0
        for j in range(n):
            pulled += weights[j] * (centre - targets[k, j])
        out[k] += scale * pulled


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
    points = np.zeros((dimension, width))
    rows = np.empty((m, width))
    decision = np.empty(width)
    weight = np.zeros(width)
    pull_rest = np.zeros((dimension, width))
    u = np.empty(work.g.shape[0])
    pair = np.zeros(work.g.shape[0])
    mean = np.empty(dimension)
    support = np.empty(m, np.int64)
    for b in range(batch):
        for k in range(dimension):
            mean[k] = 0.0
        for i in range(m):
            for k in range(dimension):
                mean[k] += sv[b, i, k] / m
        # Only differences count; without the common part of the latents the sums below keep their digits.
        for i in range(m):
            for k in range(dimension):
                work.points[k, i] = sv[b, i, k] - mean[k]
        for i in range(q):
            for k in range(dimension):
                points[k, i] = rest[b, i, k] - mean[k]
        offset, _, n = solve_location(work, m, gamma[b], total)
        a = work.a
        decision[:] = -offset
        n_support = 0
        for i in range(m):
            if a[i] > 0.0:
                support[n_support] = i
                n_support += 1
                _centred_kernel(points, work.points[:, i], gamma[b], rows[i])
                _add_row(decision, a[i], rows[i])
        outside = 0.0
        value = 0.0
        for j in range(q):
            weight[j] = 0.0
            if decision[j] < 0.0:
                value -= decision[j]
                weight[j] = 1.0 / nu
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
        for i in range(m):
            if a[i] == 0.0 and u[i] == 0.0:
                continue
            for j in range(m):
                pair[j] = 0.0
            if u[i] != 0.0:
                for s in range(n_support):
                    j = support[s]
                    pair[j] += u[i] * a[j]
            if a[i] > 0.0:
                for j in range(m):
                    pair[j] += a[i] * u[j]
            if u[i] != 0.0 or a[i] > 0.0:
                for j in range(m):
                    if pair[j] != 0.0:
                        k_ij = work.rows[i, j] if work.known[i] else work.rows[j, i]
                        pair[j] *= 1.0 + k_ij
            _pull(work.points, i, pair, work.points, m, 2.0 * gamma[b], grad_sv[b, i])

        # The kernel between sv and rest, as it stands in F.
        pull_rest[:] = 0.0
        for s in range(n_support):
            i = support[s]
            for j in range(q):
                rows[i, j] = a[i] * weight[j] * (1.0 + rows[i, j])
            _pull(work.points, i, rows[i], points, q, 2.0 * gamma[b], grad_sv[b, i])
            for k in range(dimension):
                centre = work.points[k, i]
                for j in range(q):
                    pull_rest[k, j] += rows[i, j] * (points[k, j] - centre)
        for j in range(q):
            for k in range(dimension):
                grad_rest[b, j, k] = 2.0 * gamma[b] * pull_rest[k, j]

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


@njit(nogil=True, cache=True, fastmath=_EXACT)
def _state(row):
    """0: all finite; 1: all NaN, which means missing; 2: anything else."""
    poison = row[0] * 0.0
    for k in range(1, row.shape[0]):
        poison += row[k] * 0.0
    if poison == 0.0:
        return 0
    for k in range(row.shape[0]):
        if not np.isnan(row[k]):
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
        m = 0
        broken = False
        for s in range(subjects):
            state = _state(block[s, p])
            if state == 0:
                for k in range(dimension):
                    work.points[k, m] = block[s, p, k]
                present[m] = s
                m += 1
            elif state == 2:
                broken = True
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
    points = np.zeros((dimension, most))
    weight = np.zeros(most)
    buffer = np.empty(most)
    point = np.empty(dimension)
    for p in range(n):
        first = start[p]
        m = start[p + 1] - first
        row = buffer[: (m + _LANES - 1) // _LANES * _LANES]
        for i in range(m):
            weight[i] = coef[first + i]
            for k in range(dimension):
                points[k, i] = vectors[first + i, k]
        for i in range(m, row.shape[0]):
            weight[i] = 0.0
        for s in range(subjects):
            state = _state(latents[s, p])
            if state != 0:
                out[s, p] = np.nan
                broken[p] |= state == 2
                continue
            for k in range(dimension):
                point[k] = latents[s, p, k]
            _centred_kernel(points, point, gamma[p], row)
            out[s, p] = _dot(weight, row) - offset[p]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _dot(weight, row):
    total = 0.0
    for j in range(row.shape[0]):
        total += weight[j] * row[j]
    return total
