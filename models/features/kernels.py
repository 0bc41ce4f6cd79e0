"""Compiled kernels of whitening: moments at each voxel, sums over neighbours, inverse factors, and their application.

Symmetric and triangular matrices (d, d) are packed: the rows of the lower triangle, one after the other. All compiled
functions are kept in this one file: numba's disk cache only tracks changes of the file that defines a function.
"""

import numpy as np

from ...data_manifests.caches import compiled

_FAST = {"contract", "reassoc", "nsz"}
_TILE = 8
"""Voxels whose features are transposed at a time, so that reads are long enough for hardware prefetching."""


def _reordering(function):
    """Compile a function whose sums may be reordered, which vectorisation requires; NaN and infinity are kept."""
    return compiled(function, fastmath=_FAST)


@_reordering
def moments(block, mean, within, count):
    """Mean and second moments about it, at each voxel.

    Parameters
    ----------
    block : ndarray, (S, n, d), float32
        A subject whose first feature is NaN at a voxel is missing there.
    mean : ndarray, (n, d), float32
        Filled with the means.
    within : ndarray, (n, d(d+1)/2), float32
        Filled with the packed sums of products of the deviations from the mean.
    count : ndarray of int, (n,)
        Filled with the number of subjects; -1 if a feature of a subject that is not missing is not finite.
    """
    subjects, n, d = block.shape
    tile = np.empty((_TILE, d, subjects), np.float32)
    for first in range(0, n, _TILE):
        tiled = min(_TILE, n - first)
        for s in range(subjects):
            for t in range(tiled):
                for k in range(d):
                    tile[t, k, s] = block[s, first + t, k]
        for t in range(tiled):
            p, points = first + t, tile[t]
            m = 0
            for s in range(subjects):
                if not np.isnan(points[0, s]):
                    for k in range(d):
                        points[k, m] = points[k, s]
                    m += 1
            at = 0
            finite = True
            for k in range(d):
                total = 0.0
                for s in range(m):
                    total += points[k, s]
                own = np.float32(total / m) if m > 0 else np.float32(0)
                finite &= np.isfinite(total)
                mean[p, k] = own
                for s in range(m):
                    points[k, s] -= own
                for j in range(k + 1):
                    product = np.float32(0)
                    for s in range(m):
                        product += points[k, s] * points[j, s]
                    within[p, at] = product
                    at += 1
            count[p] = m if finite else -1


@_reordering
def about_centre(within, local, freedom, out):
    """Moments about a common centre, weighted by the degrees of freedom.

    Parameters
    ----------
    within : ndarray, (n, d(d+1)/2), float32
        As filled by `moments`.
    local : ndarray, (n, d), float32
        Means minus the centre.
    freedom : ndarray, (n,), float32
        Degrees of freedom of `within`.
    out : ndarray, (n, d(d+1)/2 + d + 1), float32
        Filled with second moments, first moments and weights.
    """
    n, d = local.shape
    for p in range(n):
        at = 0
        for k in range(d):
            for j in range(k + 1):
                out[p, at] = within[p, at] + freedom[p] * local[p, k] * local[p, j]
                at += 1
        for k in range(d):
            out[p, at + k] = freedom[p] * local[p, k]
        out[p, at + d] = freedom[p]


@_reordering
def about_own_mean(summed, local, out):
    """Second moments about the mean of each voxel, from moments summed over its neighbours.

    With weighted means over the neighbours u of a voxel v: mean_u (m_u - m_v)(m_u - m_v)' = mean_u m_u m_u' -
    m_v (mean_u m_u)' - (mean_u m_u) m_v' + m_v m_v'.

    Parameters
    ----------
    summed : ndarray, (n, d(d+1)/2 + d + 1), float32
        Sums over neighbours of what `about_centre` fills.
    local : ndarray, (n, d), float32
        Means minus the centre.
    out : ndarray, (n, d(d+1)/2), float32
        Filled, packed.
    """
    n, d = local.shape
    size = d * (d + 1) // 2
    for p in range(n):
        weight = np.float32(1) / summed[p, size + d]
        at = 0
        for k in range(d):
            for j in range(k + 1):
                cross = local[p, k] * summed[p, size + j] + summed[p, size + k] * local[p, j]
                out[p, at] = (summed[p, at] - cross) * weight + local[p, k] * local[p, j]
                at += 1


@_reordering
def sum_of_three(values):
    """Add to each value its two neighbours along the middle axis, in place: (a, n, b) float32."""
    outer, n, width = values.shape
    before, own = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(outer):
        before[:] = 0
        for j in range(n):
            line = values[i, j]
            if j + 1 < n:
                after = values[i, j + 1]
                for k in range(width):
                    own[k] = line[k]
                    line[k] += before[k] + after[k]
            else:
                for k in range(width):
                    own[k] = line[k]
                    line[k] += before[k]
            before, own = own, before


@_reordering
def inverse_factors(covariance, floor, out):
    """Inverse of the Cholesky factor of each covariance.

    Parameters
    ----------
    covariance : ndarray, (n, d(d+1)/2), float64
        Packed.
    floor : float
        Added to the diagonal.
    out : ndarray, (n, d(d+1)/2), float32
        Filled with the packed inverses; NaN where the covariance is not positive definite.
    """
    n, size = covariance.shape
    d = int((np.sqrt(8 * size + 1) - 1) / 2)
    factor, inverse = np.zeros((d, d)), np.zeros((d, d))
    for p in range(n):
        at = 0
        for i in range(d):
            for j in range(i + 1):
                total = covariance[p, at]
                if i == j:
                    total += floor
                for k in range(j):
                    total -= factor[i, k] * factor[j, k]
                factor[i, j] = np.sqrt(total) if i == j else total / factor[j, j]
                at += 1
        at = 0
        for i in range(d):
            for j in range(i):
                total = 0.0
                for k in range(j, i):
                    total += factor[i, k] * inverse[k, j]
                inverse[i, j] = -total / factor[i, i]
                out[p, at + j] = inverse[i, j]
            inverse[i, i] = 1.0 / factor[i, i]
            out[p, at + i] = inverse[i, i]
            at += i + 1


@_reordering
def whiten(values, start, mean, factors, out):
    """Multiply the deviations from the mean by the factor of each of n voxels.

    Parameters
    ----------
    values : ndarray, (S, P, d), float32
        The n voxels are those from `start`.
    start : int
    mean : ndarray, (n, d), float32
    factors : ndarray, (n, d(d+1)/2), float32
        Packed.
    out : ndarray, (S, P, d), float32
        Filled at the n voxels.
    """
    subjects, _, d = values.shape
    n = len(mean)
    tile, white = np.empty((_TILE, d, subjects), np.float32), np.empty((_TILE, d, subjects), np.float32)
    for first in range(0, n, _TILE):
        tiled = min(_TILE, n - first)
        for s in range(subjects):
            for t in range(tiled):
                for k in range(d):
                    tile[t, k, s] = values[s, start + first + t, k] - mean[first + t, k]
        white[:] = 0
        for t in range(tiled):
            at = 0
            for i in range(d):
                for j in range(i + 1):
                    weight = factors[first + t, at]
                    for s in range(subjects):
                        white[t, i, s] += weight * tile[t, j, s]
                    at += 1
        for s in range(subjects):
            for t in range(tiled):
                for k in range(d):
                    out[s, start + first + t, k] = white[t, k, s]
