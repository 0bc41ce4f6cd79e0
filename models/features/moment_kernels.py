"""Compiled kernels of moments: at each voxel, over subsets of subjects, after regression, and over neighbours.

Symmetric matrices (d, d) are packed: the rows of the lower triangle, one after the other. No compiled function calls
one of another file: numba's disk cache only tracks changes of the file that defines a function.
"""

import numpy as np

from .kernels import TILE, reordering


@reordering
def subset_moments(
    block, segments, members, confounds, table, start, count, mean, within, cross, confound_mean, products
):
    """Moments of features and confounds over subsets of the subjects, at each voxel.

    The subjects are divided into groups, and a subset is a union of groups. Its moments are merged from those of its
    groups (Chan, Golub & LeVeque 1979), which only adds what is positive: a subject that differs much from all others
    costs no precision in the subsets without it.

    Parameters
    ----------
    block : ndarray, (S, n, d), float32
        Ordered by group. A subject whose first feature is NaN at a voxel is missing there.
    segments : ndarray of int, (G + 1,)
        Group g are the subjects ``segments[g]`` to ``segments[g + 1]``.
    members : ndarray of bool, (R, G)
        Groups of each subset.
    confounds : ndarray, (R, k, S), float32
        Confounds of each subset, minus their mean over the subset; 0 for subjects that are not in it.
    table : ndarray of int, (n,)
        Row of `confound_mean` and `products` that belongs to a voxel; 0 where nobody is missing.
    start : int
        The n voxels are those from `start` of the P voxels of the following arrays.
    count : ndarray of int, (R, P)
        Filled with the number of subjects; -1 if a feature of a subject that is not missing is not finite.
    mean : ndarray, (R, P, d), float32
        Filled with the means of the features.
    within : ndarray, (R, P, d(d+1)/2), float32
        Filled with the packed sums of products of the deviations from the mean.
    cross : ndarray, (R, P, k, d), float32
        Filled with the sums of products of the confounds' and the features' deviations from their means.
    confound_mean : ndarray, (m, R, k), float64
        Filled, but for row 0, with the means of the confounds over the subjects that are not missing.
    products : ndarray, (m, R, k(k+1)/2), float64
        Filled, but for row 0, with the packed sums of products of the confounds' deviations from these means.
    """
    subjects, n, d = block.shape
    n_subsets, n_groups = members.shape
    k = confounds.shape[1]
    tile = np.empty((TILE, d, subjects), np.float32)
    present = np.empty(subjects, np.float32)
    centre, total = np.empty(d), np.empty(d)
    own_count = np.empty(n_groups, np.int64)
    own_mean, own_within = np.empty((n_groups, d)), np.empty((n_groups, d * (d + 1) // 2), np.float32)
    for first in range(0, n, TILE):
        tiled = min(TILE, n - first)
        for s in range(subjects):
            for t in range(tiled):
                for i in range(d):
                    tile[t, i, s] = block[s, first + t, i]
        for t in range(tiled):
            p, points = start + first + t, tile[t]
            # Deviations from the mean of all subjects, 0 for those that are missing.
            m = 0
            for s in range(subjects):
                present[s] = np.float32(0) if np.isnan(points[0, s]) else np.float32(1)
                m += present[s] > 0
            finite = True
            for i in range(d):
                summed = 0.0
                for s in range(subjects):
                    if present[s] > 0:
                        summed += points[i, s]
                finite &= np.isfinite(summed)
                centre[i] = np.float32(summed / m) if m > 0 else 0.0
                for s in range(subjects):
                    points[i, s] = points[i, s] - np.float32(centre[i]) if present[s] > 0 else np.float32(0)
            if not finite:
                count[:, p] = -1
                continue
            for r in range(n_subsets):
                for c in range(k):
                    for i in range(d):
                        product = np.float32(0)
                        for s in range(subjects):
                            product += confounds[r, c, s] * points[i, s]
                        cross[r, p, c, i] = product
            for g in range(n_groups):
                a, b = segments[g], segments[g + 1]
                m = 0
                for s in range(a, b):
                    m += present[s] > 0
                own_count[g] = m
                for i in range(d):
                    summed = 0.0
                    for s in range(a, b):
                        summed += points[i, s]
                    own_mean[g, i] = np.float32(summed / max(m, 1))
                    for s in range(a, b):
                        points[i, s] -= present[s] * np.float32(own_mean[g, i])
                at = 0
                for i in range(d):
                    for j in range(i + 1):
                        product = np.float32(0)
                        for s in range(a, b):
                            product += points[i, s] * points[j, s]
                        own_within[g, at] = product
                        at += 1
            for r in range(n_subsets):
                m = 0
                total[:] = 0
                for g in range(n_groups):
                    if members[r, g]:
                        m += own_count[g]
                        for i in range(d):
                            total[i] += own_count[g] * own_mean[g, i]
                count[r, p] = m
                for i in range(d):
                    total[i] /= max(m, 1)
                    mean[r, p, i] = centre[i] + total[i]
                at = 0
                for i in range(d):
                    for j in range(i + 1):
                        merged = 0.0
                        for g in range(n_groups):
                            if members[r, g]:
                                between = (own_mean[g, i] - total[i]) * (own_mean[g, j] - total[j])
                                merged += own_within[g, at] + own_count[g] * between
                        within[r, p, at] = merged
                        at += 1
                row = table[first + t]
                if row == 0:
                    continue
                for c in range(k):
                    summed = 0.0
                    for s in range(subjects):
                        summed += present[s] * confounds[r, c, s]
                    confound_mean[row, r, c] = summed / max(m, 1)
                    for i in range(d):
                        cross[r, p, c, i] -= summed * total[i]
                at = 0
                for c in range(k):
                    for e in range(c + 1):
                        product = np.float32(0)
                        for s in range(subjects):
                            product += present[s] * confounds[r, c, s] * confounds[r, e, s]
                        products[row, r, at] = product - m * confound_mean[row, r, c] * confound_mean[row, r, e]
                        at += 1


@reordering
def slopes(inverse, table, cross, out):
    """Regression slopes of one subset, at each voxel.

    Parameters
    ----------
    inverse : ndarray, (m, k(k+1)/2), float64
        Packed inverses of the Cholesky factors of the confounds' products (see `inverse_factors`).
    table : ndarray of int, (n,)
        Row of `inverse` that belongs to a voxel.
    cross : ndarray, (n, k, d), float32
    out : ndarray, (n, k, d), float32
        Filled.
    """
    n, k, d = cross.shape
    half = np.empty((k, d))
    for p in range(n):
        row = table[p]
        at = 0
        for c in range(k):
            half[c] = 0
            for e in range(c + 1):
                for i in range(d):
                    half[c, i] += inverse[row, at] * cross[p, e, i]
                at += 1
        for e in range(k):
            for i in range(d):
                total = 0.0
                for c in range(e, k):
                    total += inverse[row, c * (c + 1) // 2 + e] * half[c, i]
                out[p, e, i] = total


@reordering
def residual_moments(slopes, cross, confound_mean, products, table, mean, within):
    """Moments of one subset after regression, from those before it, at each voxel and in place.

    With slopes B, features X and confounds C as deviations from their means: (X - CB)'(X - CB) = X'X - X'C B - B' C'X +
    B' C'C B.

    Parameters
    ----------
    slopes : ndarray, (k, n, d), float32
    cross : ndarray, (n, k, d), float32
        C'X.
    confound_mean : ndarray, (m, k), float64
        Means of the confounds.
    products : ndarray, (m, k(k+1)/2), float64
        C'C, packed.
    table : ndarray of int, (n,)
        Row of `confound_mean` and `products` that belongs to a voxel.
    mean : ndarray, (n, d), float32
    within : ndarray, (n, d(d+1)/2), float32
    """
    n, k, d = cross.shape
    change = np.empty((k, d))
    for p in range(n):
        row = table[p]
        for c in range(k):
            for i in range(d):
                mean[p, i] -= confound_mean[row, c] * slopes[c, p, i]
                change[c, i] = -cross[p, c, i]
            for e in range(k):
                product = products[row, max(c, e) * (max(c, e) + 1) // 2 + min(c, e)]
                for i in range(d):
                    change[c, i] += product * slopes[e, p, i]
        at = 0
        for i in range(d):
            for j in range(i + 1):
                total = 0.0
                for c in range(k):
                    total += slopes[c, p, i] * change[c, j] - cross[p, c, i] * slopes[c, p, j]
                within[p, at] += total
                at += 1


@reordering
def about_centre(within, local, freedom, out):
    """Moments about a common centre, weighted by the degrees of freedom.

    Parameters
    ----------
    within : ndarray, (n, d(d+1)/2), float32
        Sums of products of the deviations from the mean.
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


@reordering
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


@reordering
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
