"""Compiled kernels of whitening: inverse factors of covariances, and their application.

Symmetric and triangular matrices (d, d) are packed: the rows of the lower triangle, one after the other. No compiled
function calls one of another file: numba's disk cache only tracks changes of the file that defines a function.
"""

import numpy as np

from ...data_manifests.caches import compiled

_FAST = {"contract", "reassoc", "nsz"}
TILE = 8
"""Voxels whose features are transposed at a time, so that reads are long enough for hardware prefetching."""


def reordering(function):
    """Compile a function whose sums may be reordered, which vectorisation requires; NaN and infinity are kept."""
    return compiled(function, fastmath=_FAST)


@reordering
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


@reordering
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
    tile, white = np.empty((TILE, d, subjects), np.float32), np.empty((TILE, d, subjects), np.float32)
    for first in range(0, n, TILE):
        tiled = min(TILE, n - first)
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
