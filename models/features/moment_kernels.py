"""Compiled kernels of moments: at each voxel, over subsets of subjects, after regression, and over neighbours.

Symmetric matrices (d, d) are packed: the rows of the lower triangle, one after the other. No compiled function calls
one of another file: numba's disk cache only tracks changes of the file that defines a function.
"""

import numpy as np

from ...data_manifests.caches import compiled_reordering

COLUMNS = 16
"""Columns that are summed over neighbours at a time: the floats of a cache line."""


@compiled_reordering
def subset_moments(
    block, weights, segments, members, confounds, table, start, count, mean, within, cross, confound_mean, products
):
    """Moments of features and confounds over subsets of the subjects, at each voxel.

    The subjects are divided into groups, and a subset is a union of groups. Its moments are merged from those of its
    groups (Chan, Golub & LeVeque 1979), which only adds what is positive: a subject that differs much from all others
    costs no precision in the subsets without it.

    Parameters
    ----------
    block : ndarray, (S, n, d), float32
        Ordered by group. A subject whose first feature is NaN at a voxel is missing there.
    weights : ndarray, (S,), float64
        Weight of each subject; as if it occurred so many times.
    segments : ndarray of int, (G + 1,)
        Group g are the subjects ``segments[g]`` to ``segments[g + 1]``.
    members : ndarray of bool, (R, G)
        Groups of each subset.
    confounds : ndarray, (S, R * k), float32
        Confounds of one subset after the other, minus their weighted mean over the subset; 0 for subjects that are not
        in it.
    table : ndarray of int, (n,)
        Row of `confound_mean` and `products` that belongs to a voxel; 0 where nobody is missing.
    start : int
        The n voxels are those from `start` of the P voxels of the following arrays.
    count : ndarray, (R, P), float64
        Filled with the sum of the weights of the subjects; -1 if a feature of a subject that is not missing is not
        finite.
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
    k = confounds.shape[1] // n_subsets
    points = np.empty((subjects, d), np.float32)
    # Whether a subject is there, and its weight, 0 for those that are missing.
    present, mass = np.empty(subjects, np.float32), np.empty(subjects, np.float32)
    centre, total, shift = np.empty(d), np.empty(d), np.empty(d, np.float32)
    own_count, own_mean = np.empty(n_groups), np.empty((n_groups, d))
    # Inner loops run over whole rows, which vectorise, also where one triangle would do.
    sums = np.empty((d, n_subsets * k), np.float32)
    own_within, merged = np.empty((n_groups, d, d), np.float32), np.empty((d, d), np.float32)
    for v in range(n):
        p = start + v
        # Deviations from the mean of all subjects, 0 for those that are missing.
        m = 0.0
        total[:] = 0
        for s in range(subjects):
            present[s] = np.float32(0) if np.isnan(block[s, v, 0]) else np.float32(1)
            mass[s] = present[s] * weights[s]
            if present[s] > 0:
                m += mass[s]
                for i in range(d):
                    total[i] += mass[s] * block[s, v, i]
        finite = True
        for i in range(d):
            finite &= np.isfinite(total[i])
            shift[i] = total[i] / m if m > 0 else 0.0
            centre[i] = shift[i]
        if not finite:
            count[:, p] = -1
            continue
        for s in range(subjects):
            for i in range(d):
                points[s, i] = block[s, v, i] - shift[i] if present[s] > 0 else np.float32(0)
        sums[:] = 0
        for s in range(subjects):
            for i in range(d):
                value = mass[s] * points[s, i]
                for c in range(n_subsets * k):
                    sums[i, c] += value * confounds[s, c]
        for r in range(n_subsets):
            for c in range(k):
                for i in range(d):
                    cross[r, p, c, i] = sums[i, r * k + c]
        for g in range(n_groups):
            a, b = segments[g], segments[g + 1]
            m = 0.0
            total[:] = 0
            for s in range(a, b):
                m += mass[s]
                for i in range(d):
                    total[i] += mass[s] * points[s, i]
            own_count[g] = m
            for i in range(d):
                shift[i] = total[i] / m if m > 0 else 0.0
                own_mean[g, i] = shift[i]
            own = own_within[g]
            own[:] = 0
            for s in range(a, b):
                for i in range(d):
                    points[s, i] -= present[s] * shift[i]
                for i in range(d):
                    value = mass[s] * points[s, i]
                    for j in range(d):
                        own[i, j] += value * points[s, j]
        for r in range(n_subsets):
            m = 0.0
            total[:] = 0
            for g in range(n_groups):
                if members[r, g]:
                    m += own_count[g]
                    for i in range(d):
                        total[i] += own_count[g] * own_mean[g, i]
            count[r, p] = m
            for i in range(d):
                total[i] = total[i] / m if m > 0 else 0.0
                mean[r, p, i] = centre[i] + total[i]
            merged[:] = 0
            for g in range(n_groups):
                if members[r, g]:
                    for i in range(d):
                        shift[i] = own_mean[g, i] - total[i]
                    for i in range(d):
                        weighted = np.float32(own_count[g]) * shift[i]
                        for j in range(d):
                            merged[i, j] += own_within[g, i, j] + weighted * shift[j]
            at = 0
            for i in range(d):
                for j in range(i + 1):
                    within[r, p, at] = merged[i, j]
                    at += 1
            row = table[v]
            if row == 0:
                continue
            for c in range(k):
                summed = 0.0
                for s in range(subjects):
                    summed += mass[s] * confounds[s, r * k + c]
                confound_mean[row, r, c] = summed / m if m > 0 else 0.0
                for i in range(d):
                    cross[r, p, c, i] -= summed * total[i]
            at = 0
            for c in range(k):
                for e in range(c + 1):
                    summed = 0.0
                    for s in range(subjects):
                        summed += mass[s] * confounds[s, r * k + c] * confounds[s, r * k + e]
                    products[row, r, at] = summed - m * confound_mean[row, r, c] * confound_mean[row, r, e]
                    at += 1


@compiled_reordering
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
    half, total = np.empty(d), np.empty((k, d))
    for p in range(n):
        row = table[p]
        at = 0
        total[:] = 0
        for c in range(k):
            half[:] = 0
            for e in range(c + 1):
                weight = inverse[row, at + e]
                for i in range(d):
                    half[i] += weight * cross[p, e, i]
            for e in range(c + 1):
                weight = inverse[row, at + e]
                for i in range(d):
                    total[e, i] += weight * half[i]
            at += c + 1
        for e in range(k):
            for i in range(d):
                out[p, e, i] = total[e, i]


@compiled_reordering
def residual_moments(slopes, cross, confound_mean, products, table, mean, within):
    """Moments of one subset after regression, from those before it, at each voxel and in place.

    With slopes B, features X and confounds C as deviations from their means: (X - CB)'(X - CB) = X'X - X'C B - B' C'X +
    B' C'C B.

    Parameters
    ----------
    slopes : ndarray, (n, k, d), float32
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
    own, change, row_of = np.empty((k, d)), np.empty((k, d)), np.empty(d)
    for p in range(n):
        row = table[p]
        for c in range(k):
            for i in range(d):
                own[c, i] = slopes[p, c, i]
                mean[p, i] -= confound_mean[row, c] * own[c, i]
                change[c, i] = -cross[p, c, i]
        for c in range(k):
            for e in range(k):
                product = products[row, max(c, e) * (max(c, e) + 1) // 2 + min(c, e)]
                for i in range(d):
                    change[c, i] += product * own[e, i]
        at = 0
        for i in range(d):
            row_of[:] = 0
            for c in range(k):
                left, right = own[c, i], cross[p, c, i]
                for j in range(d):
                    row_of[j] += left * change[c, j] - right * own[c, j]
            for j in range(i + 1):
                within[p, at] += row_of[j]
                at += 1


@compiled_reordering
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


@compiled_reordering
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


@compiled_reordering
def sum_over_neighbours(values, index, wanted, shape, out):
    """Sum values over the 3x3x3 neighbours of voxels; voxels without a value count as 0.

    Parameters
    ----------
    values : ndarray, (n, k), float32
    index, wanted : ndarray of int, (n,) and (m,)
        Flat indices, in a box, of the voxels of `values` and of those of `out`. None is at the border of the box.
    shape : ndarray of int, (3,)
        Shape of the box.
    out : ndarray, (m, k), float32
        Filled with the sums.
    """
    width = values.shape[1]
    line = shape[2] * COLUMNS
    plane = shape[1] * line
    # A few columns at a time, so that a plane stays in the cache. Sums run over whole planes: those at the border of
    # the box are wrong and are not used.
    box, lines = np.empty(shape[0] * plane, np.float32), np.zeros(plane, np.float32)
    for start in range(0, width, COLUMNS):
        box[:] = 0
        if start + COLUMNS <= width:
            for v in range(len(index)):
                to = index[v] * COLUMNS
                for c in range(COLUMNS):
                    box[to + c] = values[v, start + c]
        else:
            for v in range(len(index)):
                for c in range(width - start):
                    box[index[v] * COLUMNS + c] = values[v, start + c]
        for x in range(1, shape[0] - 1):
            own = box[x * plane : (x + 1) * plane]
            for t in range(COLUMNS, plane - COLUMNS):
                lines[t] = own[t - COLUMNS] + own[t] + own[t + COLUMNS]
            for t in range(line, plane - line):
                own[t] = lines[t - line] + lines[t] + lines[t + line]
        if start + COLUMNS <= width:
            for v in range(len(wanted)):
                at = wanted[v] * COLUMNS
                for c in range(COLUMNS):
                    out[v, start + c] = box[at - plane + c] + box[at + c] + box[at + plane + c]
        else:
            for v in range(len(wanted)):
                at = wanted[v] * COLUMNS
                for c in range(width - start):
                    out[v, start + c] = box[at - plane + c] + box[at + c] + box[at + plane + c]
