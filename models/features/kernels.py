"""Compiled kernels of whitening: inverse factors of covariances, and their application.

Symmetric and triangular matrices (d, d) are packed: the rows of the lower triangle, one after the other. No compiled
function calls one of another file: numba's disk cache only tracks changes of the file that defines a function.
"""

import numpy as np

from ...data_manifests.caches import REORDERING, compiled, compiled_reordering

TILE = 8
"""Voxels whose features are transposed at a time, so that reads are long enough for hardware prefetching."""
LANES = 8
"""Voxels that are factorised at a time, in the lanes of vector registers."""


def _part_of_another(function):
    """Compile a function that is part of those that call it.

    Otherwise there would be two copies, one compiled alone and one with its caller, which add up in another order. A
    process that compiles would execute the first one, and a process that finds its caller in the cache the second one.
    """
    return compiled(function, fastmath=REORDERING, _nrt=False, forceinline=True)


@compiled_reordering
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
    factor, inverse = np.zeros((d, d, LANES)), np.zeros((d, d, LANES))
    packed, total = np.empty((size, LANES)), np.empty(LANES)
    for first in range(0, n, LANES):
        last = min(LANES, n - first) - 1
        for v in range(LANES):
            for at in range(size):
                packed[at, v] = covariance[first + min(v, last), at]
        at = 0
        for i in range(d):
            for j in range(i + 1):
                for v in range(LANES):
                    total[v] = packed[at, v]
                for k in range(j):
                    for v in range(LANES):
                        total[v] -= factor[i, k, v] * factor[j, k, v]
                if i == j:
                    for v in range(LANES):
                        # The diagonal of the factor is stored inverted.
                        factor[i, i, v] = 1.0 / np.sqrt(total[v] + floor)
                else:
                    for v in range(LANES):
                        factor[i, j, v] = total[v] * factor[j, j, v]
                at += 1
        for i in range(d):
            for j in range(i):
                total[:] = 0.0
                for k in range(j, i):
                    for v in range(LANES):
                        total[v] += factor[i, k, v] * inverse[k, j, v]
                for v in range(LANES):
                    inverse[i, j, v] = -total[v] * factor[i, i, v]
            inverse[i, i] = factor[i, i]
        for v in range(last + 1):
            at = 0
            for i in range(d):
                for j in range(i + 1):
                    out[first + v, at] = inverse[i, j, v]
                    at += 1


@compiled_reordering
def regularised(covariance, brain, variance, shrinkage, diagonal, out):
    """Mix the covariance of each voxel with that of the whole brain, scaled to the voxel's variance.

    Parameters
    ----------
    covariance : ndarray, (n, d(d+1)/2), float32
        Packed.
    brain : ndarray, (d(d+1)/2,), float64
        Packed covariance of the whole brain.
    variance : float
        Mean variance in the brain.
    shrinkage : float
        Weight of the whole brain.
    diagonal : bool
        Set all elements off the diagonal to 0.
    out : ndarray, (n, d(d+1)/2), float64
        Filled.
    """
    n, size = covariance.shape
    d = int((np.sqrt(8 * size + 1) - 1) / 2)
    for p in range(n):
        own = 0.0
        for i in range(d):
            own += covariance[p, i * (i + 3) // 2]
        weight = shrinkage * own / (d * variance)
        for at in range(size):
            out[p, at] = (1.0 - shrinkage) * covariance[p, at] + weight * brain[at]
        if diagonal:
            for i in range(d):
                for at in range(i * (i + 1) // 2, i * (i + 3) // 2):
                    out[p, at] = 0.0


@_part_of_another
def _subtract(points, t, i, rows, weights, p):
    """Subtract rows (k, lanes), weighted by weights[:, p, i], from points[t, i], four at a time for fewer passes."""
    k, lanes = rows.shape
    for f in range(0, k - 3, 4):
        w0, w1, w2, w3 = weights[f, p, i], weights[f + 1, p, i], weights[f + 2, p, i], weights[f + 3, p, i]
        for s in range(lanes):
            points[t, i, s] -= (w0 * rows[f, s] + w1 * rows[f + 1, s]) + (w2 * rows[f + 2, s] + w3 * rows[f + 3, s])
    for f in range(k // 4 * 4, k):
        w0 = weights[f, p, i]
        for s in range(lanes):
            points[t, i, s] -= w0 * rows[f, s]


@_part_of_another
def _combine(points, t, n, weights, p, at, out, i):
    """Fill out[i] with the sum of the first n rows of points[t], weighted by weights[p, at:]."""
    lanes = out.shape[1]
    w0 = weights[p, at]
    for s in range(lanes):
        out[i, s] = w0 * points[t, 0, s]
    for f in range(1, n - 3, 4):
        w0, w1, w2, w3 = weights[p, at + f], weights[p, at + f + 1], weights[p, at + f + 2], weights[p, at + f + 3]
        for s in range(lanes):
            near = w0 * points[t, f, s] + w1 * points[t, f + 1, s]
            out[i, s] += near + (w2 * points[t, f + 2, s] + w3 * points[t, f + 3, s])
    for f in range(1 + (n - 1) // 4 * 4, n):
        w0 = weights[p, at + f]
        for s in range(lanes):
            out[i, s] += w0 * points[t, f, s]


@compiled_reordering
def whiten(values, subjects, start, confounds, slopes, mean, factors, out):
    """Multiply the deviations from what is expected by the factor of each of n voxels.

    Parameters
    ----------
    values : ndarray, (all subjects, P, d), float32
        The n voxels are those from `start`.
    subjects : ndarray of int, (S,)
        Subjects to whiten.
    start : int
    confounds : ndarray, (k, S), float32
    slopes : ndarray, (k, n, d), float32
        Change of the values per unit of each confound.
    mean : ndarray, (n, d), float32
        Expected where the confounds are 0.
    factors : ndarray, (n, d(d+1)/2), float32
        Packed.
    out : ndarray, (S, P, d), float32
        Filled at the n voxels.
    """
    n, d = mean.shape
    k, count = confounds.shape
    if count == 1:
        # Without the other subjects of a row, sums run over the features.
        own_values = np.empty(d, np.float32)
        for p in range(n):
            for i in range(d):
                own_values[i] = values[subjects[0], start + p, i] - mean[p, i]
            for c in range(k):
                for i in range(d):
                    own_values[i] -= confounds[c, 0] * slopes[c, p, i]
            at = 0
            for i in range(d):
                total = np.float32(0)
                for j in range(i + 1):
                    total += factors[p, at + j] * own_values[j]
                out[0, start + p, i] = total
                at += i + 1
        return
    # Rows of whole vectors, and an odd number of cache lines apart, since those a power of two apart evict each other.
    lanes = (count + 15) // 16 * 16
    apart = lanes + 16 if lanes % 32 == 0 else lanes
    tile, white = np.zeros((TILE, d, apart), np.float32), np.empty((d, lanes), np.float32)
    own = np.zeros((k, lanes), np.float32)
    own[:, :count] = confounds
    for first in range(0, n, TILE):
        tiled = min(TILE, n - first)
        for s in range(count):
            for t in range(tiled):
                for i in range(d):
                    tile[t, i, s] = values[subjects[s], start + first + t, i] - mean[first + t, i]
        for t in range(tiled):
            at = 0
            for i in range(d):
                _subtract(tile, t, i, own, slopes, first + t)
            for i in range(d):
                _combine(tile, t, i + 1, factors, first + t, at, white, i)
                at += i + 1
            for i in range(d):
                for s in range(lanes):
                    tile[t, i, s] = white[i, s]
        for s in range(count):
            for t in range(tiled):
                for i in range(d):
                    out[s, start + first + t, i] = tile[t, i, s]
