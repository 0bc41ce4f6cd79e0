"""Compiled kernels of the learned scorer: derivatives of images and deviations from the controls."""

import numpy as np

from ...data_manifests.caches import compiled


@compiled
def derivatives(volume, spacing_mm, index, out):
    """First and second derivatives at some voxels, as `numpy.gradient` computes them.

    Parameters
    ----------
    volume : ndarray, (X, Y, Z), float32
    spacing_mm : ndarray, (3,)
    index : ndarray of int, (n,)
        Flat indices of the voxels.
    out : ndarray, (9, n), float32
        Filled with the gradient and with xx, yy, zz, xy, xz, yz of the Hessian.
    """
    flat, shape = volume.ravel(), volume.shape
    stride = (shape[1] * shape[2], shape[2], 1)
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    place, per_mm, beside = np.empty(3, np.int64), np.empty(3), np.empty(2)
    for v in range(len(index)):
        place[0] = index[v] // stride[0]
        place[1] = index[v] % stride[0] // stride[1]
        place[2] = index[v] % stride[1]
        for a in range(3):
            # At an edge, the difference from the voxel itself.
            low[a], high[a] = max(place[a] - 1, 0), min(place[a] + 1, shape[a] - 1)
            per_mm[a] = 1 / (spacing_mm[a] * (high[a] - low[a]))
            here = index[v] - place[a] * stride[a]
            out[a, v] = (flat[here + high[a] * stride[a]] - flat[here + low[a] * stride[a]]) * per_mm[a]
        row = 3
        for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
            for side in range(2):
                # The slope along a, at the neighbour along b.
                to = high[b] if side else low[b]
                here = index[v] + (to - place[b]) * stride[b]
                centre = to if a == b else place[a]
                first, last = max(centre - 1, 0), min(centre + 1, shape[a] - 1)
                change = flat[here + (last - centre) * stride[a]] - flat[here + (first - centre) * stride[a]]
                beside[side] = np.float32(change / (spacing_mm[a] * (last - first)))
            out[row, v] = (beside[1] - beside[0]) * per_mm[b]
            row += 1


@compiled
def deviations(features, mean, sd, packed, out):
    """Signed z-scores of the channels and, last, their Mahalanobis distance divided by the square root of C.

    Parameters
    ----------
    features, mean, sd : ndarray, (P, C), float32
    packed : ndarray, (P, C(C+1)/2), float32
        Whitening factors, see `Whitening`.
    out : ndarray, (P, C + 1), float32
        Filled.
    """
    n, size = features.shape
    away = np.empty(size, np.float32)
    for p in range(n):
        for c in range(size):
            away[c] = features[p, c] - mean[p, c]
            out[p, c] = away[c] / sd[p, c]
        squares = np.float32(0)
        at = 0
        for c in range(size):
            white = np.float32(0)
            for e in range(c + 1):
                white += packed[p, at] * away[e]
                at += 1
            squares += white * white
        out[p, size] = np.sqrt(squares / np.float32(size))
