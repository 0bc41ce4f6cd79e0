"""Fitting and scoring of the detectors of a block of voxels."""

import numpy as np

from .jit import aligned, fastmath, nan_safe, strict, whole_lanes
from .kernel_rows import kernel_row, row_dot
from .solve import solve_location
from .workspace import make_workspace

# Voxels whose latents are transposed at a time, so that reads are long enough for hardware prefetching.
_TILE = 8


@nan_safe
def _all_finite(points):
    poison = 0.0
    for k in range(points.shape[0]):
        for j in range(points.shape[1]):
            poison += points[k, j] * 0.0
    return poison == 0.0


@nan_safe
def _state(latents):
    """State of the latents (d,) of a subject at a voxel: 0 all finite, 1 all NaN (missing), 2 otherwise."""
    poison = 0.0
    for k in range(latents.shape[0]):
        poison += latents[k] * 0.0
    if poison == 0.0:
        return 0
    for k in range(latents.shape[0]):
        if not np.isnan(latents[k]):
            return 2
    return 1


@fastmath
def _scale_gamma(points, m):
    """1/(d*variance) of all values of the first m columns; 1 if they are all equal."""
    dimension = points.shape[0]
    total, lowest, highest = 0.0, points[0, 0], points[0, 0]
    for k in range(dimension):
        for i in range(m):
            total += points[k, i]
            lowest, highest = min(lowest, points[k, i]), max(highest, points[k, i])
    if lowest == highest:
        return 1.0
    mean = total / (m * dimension)
    squares = 0.0
    for k in range(dimension):
        for i in range(m):
            squares += (points[k, i] - mean) ** 2
    return m / squares if squares > 0.0 else 1.0


@strict
def fit_block(block, weights, nu, gamma, by_scale, vectors, coef, n_support, offset, width, count, weight):
    """Fit one detector at each of n voxels of block (S, n, d), with weights (S,).

    Subjects whose latents are all NaN at a voxel are left out there. Fills, one voxel after the other, vectors (at most
    n*S, d) and coef (at most n*S,) with the support vectors and their a, and n_support (n,), offset (n,) (centred),
    width (n,) (gamma), count (n,): the number of subjects with a weight at a voxel, or -1 if a latent is infinite or
    only some are NaN, and weight (n,): the sum of their weights. Returns the number of support vectors.
    """
    subjects, n, dimension = block.shape
    lanes = whole_lanes(subjects)
    work = make_workspace(subjects)
    own = np.empty(subjects)
    tile = aligned(_TILE * dimension, lanes).reshape(_TILE, dimension, lanes)
    all_weighted, all_weight = 0, 0.0
    for s in range(subjects):
        all_weighted += weights[s] > 0.0
        all_weight += weights[s]
    at = 0
    for first in range(0, n, _TILE):
        tiled = min(_TILE, n - first)
        for s in range(subjects):
            for t in range(tiled):
                for k in range(dimension):
                    tile[t, k, s] = block[s, first + t, k]
        for t in range(tiled):
            p = first + t
            points = tile[t]
            m, n_weighted, total = subjects, all_weighted, all_weight
            own[:] = weights
            broken = False
            if not _all_finite(points):
                m, n_weighted, total = 0, 0, 0.0
                points[:] = 0.0
                for s in range(subjects):
                    state = _state(block[s, p])
                    broken |= state == 2
                    if state == 0:
                        for k in range(dimension):
                            points[k, m] = block[s, p, k]
                        own[m] = weights[s]
                        n_weighted += weights[s] > 0.0
                        total += weights[s]
                        m += 1
            count[p], weight[p] = -1 if broken else n_weighted, total
            if broken or n_weighted == 0:
                continue
            width[p] = _scale_gamma(points, m) if by_scale else gamma
            unit, _, centred, _, _ = solve_location(work, points, own, m, width[p], nu)
            offset[p] = unit * centred
            before = at
            for i in range(m):
                if work.a[i] > 0.0:
                    for k in range(dimension):
                        vectors[at, k] = points[k, i]
                    coef[at] = unit * work.a[i]
                    at += 1
            n_support[p] = at - before
    return at


@strict
def score_block(latents, vectors, coef, start, offset, gamma, out, broken):
    """Decision function F of n detectors for latents (N, n, d): out (N, n).

    The support vectors of detector p are the rows start[p] to start[p + 1] of vectors and coef. Latents that are all
    NaN get the score NaN; broken (n,) marks voxels where a latent is infinite or only some are NaN.
    """
    subjects, n, dimension = latents.shape
    most = 0
    for p in range(n):
        most = max(most, start[p + 1] - start[p])
    most = whole_lanes(most)
    points = aligned(dimension, most)
    row = aligned(1, most)
    weight = np.zeros(most)
    point = np.empty((dimension, 1))
    for p in range(n):
        first = start[p]
        m = start[p + 1] - first
        for i in range(m):
            weight[i] = coef[first + i]
            for k in range(dimension):
                points[k, i] = vectors[first + i, k]
        width = whole_lanes(m)
        weight[m:width] = 0.0
        for s in range(subjects):
            state = _state(latents[s, p])
            if state != 0:
                out[s, p] = np.nan
                broken[p] |= state == 2
                continue
            for k in range(dimension):
                point[k, 0] = latents[s, p, k]
            kernel_row(points, width, point, 0, gamma[p], row, 0)
            out[s, p] = row_dot(weight, width, row, 0) - offset[p]


@strict
def widen_half(bits, out):
    """Convert float16, given as uint16, to float32: finite numbers exactly, all others to NaN."""
    for i in range(bits.shape[0]):
        word = np.uint32(bits[i])
        # Fraction and exponent, shifted to their float32 positions, represent 2^-112 times the number.
        size = np.uint32((word & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
        sign = np.float32(-1.0) if word & np.uint32(0x8000) else np.float32(1.0)
        out[i] = np.float32(np.nan) if (word & np.uint32(0x7C00)) == np.uint32(0x7C00) else sign * size
