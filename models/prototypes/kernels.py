"""Compiled sampling of patches around a block, k-means, and distances to the nearest prototype.

Random numbers are a function of the seed, so that results do not depend on the number of threads.
"""

import numpy as np

from ...data_manifests.caches import compiled, compiled_reordering

_TRIES = 4
"""Attempts to find a voxel with features, per patch that is sampled."""


@compiled
def _drawn(state, count):
    """Next state of the generator, and a whole number below `count` (SplitMix64)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return state, np.int64((mixed >> np.uint64(11)) % np.uint64(count))


@compiled
def sample(index, features, corners, offsets, seed, out):
    """Sample features of one subject around each block.

    Parameters
    ----------
    index : ndarray of int, (X, Y, Z)
        Number of each voxel; -1 outside the mask.
    features : ndarray, (P, d), float32
        NaN where there are none.
    corners : ndarray of int, (B, 3)
        First voxel of each block.
    offsets : ndarray of int, (n, 3)
        From the corner to the voxels around the block.
    seed : int
    out : ndarray, (B, m, d)
        Filled; NaN where no voxel with features was found.
    """
    for block in range(len(corners)):
        state = (np.uint64(seed) << np.uint64(32)) + np.uint64(block)
        found = 0
        for _ in range(_TRIES * out.shape[1]):
            if found == out.shape[1]:
                break
            state, chosen = _drawn(state, len(offsets))
            x = corners[block, 0] + offsets[chosen, 0]
            y = corners[block, 1] + offsets[chosen, 1]
            z = corners[block, 2] + offsets[chosen, 2]
            if not (0 <= x < index.shape[0] and 0 <= y < index.shape[1] and 0 <= z < index.shape[2]):
                continue
            voxel = index[x, y, z]
            if voxel >= 0 and not np.isnan(features[voxel, 0]):
                out[block, found] = features[voxel]
                found += 1
        out[block, found:] = np.nan


@compiled_reordering
def _squared(a, b):
    total = np.float32(0)
    for axis in range(len(a)):
        total += (a[axis] - b[axis]) ** 2
    return total


@compiled_reordering
def _nearest(patch, prototypes):
    best, number = _squared(patch, prototypes[0]), 0
    for k in range(1, len(prototypes)):
        squared = _squared(patch, prototypes[k])
        if squared < best:
            best, number = squared, k
    return number, best


@compiled_reordering
def _spread_out(patches, seed, prototypes):
    """Choose initial prototypes among the patches, in proportion to the squared distance to those chosen before."""
    n = len(patches)
    distance = np.full(n, np.float32(np.inf))
    state, chosen = _drawn(np.uint64(seed), n)
    for k in range(len(prototypes)):
        prototypes[k] = patches[chosen]
        total = 0.0
        for i in range(n):
            distance[i] = min(distance[i], _squared(patches[i], prototypes[k]))
            total += distance[i]
        state, number = _drawn(state, 1 << 30)
        limit, chosen = total * number / (1 << 30), 0
        reached = np.float64(distance[0])
        while reached < limit and chosen < n - 1:
            chosen += 1
            reached += distance[chosen]


@compiled_reordering
def fit_block(patches, participants, rounds, fewest, shrinkage, floor, seed, prototypes, factor):
    """Compute the prototypes of one block by k-means, and the covariance of the patches about them.

    Parameters
    ----------
    patches : ndarray, (n, d), float32
    participants : ndarray of int, (n,)
        Whose patch it is; ascending.
    rounds : int
        Rounds of k-means.
    fewest : int
        A prototype of fewer participants is replaced by that of most patches.
    shrinkage, floor : float
        Share of the mean variance that replaces the covariance, and variance that is added to it.
    seed : int
    prototypes : ndarray, (K, d), float32
        Filled.
    factor : ndarray, (d, d), float32
        Filled with the inverse of the covariance's Cholesky factor.
    """
    n, d = patches.shape
    size = len(prototypes)
    nearest, count = np.zeros(n, np.int64), np.zeros(size, np.int64)
    _spread_out(patches, seed, prototypes)
    for _ in range(rounds):
        total = np.zeros((size, d))
        count[:] = 0
        for i in range(n):
            k = _nearest(patches[i], prototypes)[0]
            nearest[i] = k
            count[k] += 1
            for a in range(d):
                total[k, a] += patches[i, a]
        for k in range(size):
            if count[k]:
                for a in range(d):
                    prototypes[k, a] = total[k, a] / count[k]
    n_participants, last = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    for i in range(n):
        k = nearest[i]
        n_participants[k] += participants[i] != last[k]
        last[k] = participants[i]
    largest = 0
    for k in range(size):
        enough, enough_before = n_participants[k] >= fewest, n_participants[largest] >= fewest
        if enough > enough_before or (enough == enough_before and count[k] > count[largest]):
            largest = k
    if n_participants[largest] < fewest:
        # Patches so scattered have their mean as the only prototype.
        nearest[:] = largest
        for a in range(d):
            prototypes[largest, a] = patches[:, a].mean()
    covariance, used = np.zeros((d, d)), 0
    for i in range(n):
        k = nearest[i]
        if k != largest and n_participants[k] < fewest:
            continue
        used += 1
        for a in range(d):
            for b in range(a + 1):
                covariance[a, b] += (patches[i, a] - prototypes[k, a]) * (patches[i, b] - prototypes[k, b])
    for k in range(size):
        if n_participants[k] < fewest:
            prototypes[k] = prototypes[largest]
    mean_variance = 0.0
    for a in range(d):
        mean_variance += covariance[a, a] / used / d
    for a in range(d):
        for b in range(a + 1):
            covariance[a, b] *= (1 - shrinkage) / used
            covariance[b, a] = covariance[a, b]
        covariance[a, a] += shrinkage * mean_variance + floor
    factor[:] = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float32)


@compiled
def fit_blocks(samples, participants, rounds, fewest, shrinkage, floor, first, prototypes, factors):
    """Compute the prototypes of blocks, see `fit_block`; 0 for a block without patches.

    Parameters
    ----------
    samples : ndarray, (S, B, m, d), float32
        Sampled patches of S subjects; NaN: none.
    participants : ndarray of int, (S,)
        Whose scans they are; ascending.
    rounds, fewest, shrinkage, floor
        See `fit_block`.
    first : int
        Number of the first block, which is the seed.
    prototypes : ndarray, (B, K, d), float32
        Filled.
    factors : ndarray, (B, d, d), float32
        Filled.
    """
    n_subjects, n_blocks, m, d = samples.shape
    patches, whose = np.empty((n_subjects * m, d), np.float32), np.empty(n_subjects * m, np.int64)
    for block in range(n_blocks):
        n = 0
        for subject in range(n_subjects):
            for i in range(m):
                if not np.isnan(samples[subject, block, i, 0]):
                    patches[n], whose[n] = samples[subject, block, i], participants[subject]
                    n += 1
        if n == 0:
            prototypes[block], factors[block] = 0, 0
            continue
        fit_block(
            patches[:n],
            whose[:n],
            rounds,
            fewest,
            shrinkage,
            floor,
            first + block,
            prototypes[block],
            factors[block],
        )


@compiled_reordering
def distances(features, blocks, prototypes, factors, out):
    """Compute the Mahalanobis distance of features (n, d) to the nearest prototype of their block, (n,)."""
    n, d = features.shape
    difference = np.empty(d, np.float32)
    for i in range(n):
        block = blocks[i]
        best = np.float32(np.inf)
        for k in range(prototypes.shape[1]):
            for a in range(d):
                difference[a] = features[i, a] - prototypes[block, k, a]
            squared = np.float32(0)
            for a in range(d):
                white = np.float32(0)
                for b in range(a + 1):
                    white += factors[block, a, b] * difference[b]
                squared += white * white
            best = min(best, squared)
        out[i] = np.sqrt(best)
