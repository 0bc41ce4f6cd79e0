"""Direct implementations of regression and whitening: voxel by voxel, neighbour by neighbour, in float64."""

import numpy as np


def neighbours_of(voxel_mask):
    """Indices of the voxels in the 3x3x3 neighbourhood of each voxel, itself included."""
    index = {tuple(voxel): number for number, voxel in enumerate(voxel_mask.locations)}
    for voxel in voxel_mask.locations:
        near = [index.get(tuple(voxel + np.array(step) - 1)) for step in np.ndindex(3, 3, 3)]
        yield [u for u in near if u is not None]


def slow_slopes(features, confounds, voxel_mask, ridge=5.0):
    """Slopes (k, P, d) of ridge regressions on the controls that are available, averaged over the neighbours."""
    own = np.empty((features.shape[1], confounds.shape[1], features.shape[2]))
    for voxel, values in enumerate(features.astype(np.float64).swapaxes(0, 1)):
        there = np.isfinite(values[:, 0])
        x, c = values[there] - values[there].mean(axis=0), confounds[there] - confounds[there].mean(axis=0)
        rows = np.vstack([c, np.sqrt(ridge) * np.eye(c.shape[1])])
        own[voxel] = np.linalg.lstsq(rows, np.vstack([x, np.zeros((c.shape[1], x.shape[1]))]), rcond=None)[0]
    return np.stack([own[near].mean(axis=0) for near in neighbours_of(voxel_mask)], axis=1)


def slow_pooled(features, voxel_mask):
    """Covariances (P, d, d) about the mean of each voxel, pooled over its neighbours."""
    _, size, dimension = features.shape
    features = features.astype(np.float64)
    means, freedom = np.nanmean(features, axis=0), np.isfinite(features[..., 0]).sum(axis=0) - 1
    pooled = np.zeros((size, dimension, dimension))
    for v, near in enumerate(neighbours_of(voxel_mask)):
        for u in near:
            own = np.nan_to_num(features[:, u] - means[u])
            difference = means[u] - means[v]
            pooled[v] += (own.T @ own + freedom[u] * np.outer(difference, difference)) / freedom[near].sum()
    return pooled


def slow_covariances(features, voxel_mask, shrinkage):
    """The same, shrunk towards the mean over the brain, scaled to the variance of the voxel."""
    pooled = slow_pooled(features, voxel_mask)
    brain = pooled.mean(axis=0)
    scale = np.trace(pooled, axis1=1, axis2=2) / np.trace(brain)
    return (1 - shrinkage) * pooled + shrinkage * scale[:, None, None] * brain


def slow_whitened(features, voxel_mask, fitted_on, shrinkage=0.01, floor=1e-4):
    """White features (S, P, d), by means and covariances of some of the subjects."""
    covariances = slow_covariances(features[fitted_on], voxel_mask, shrinkage)
    variance = np.trace(slow_pooled(features[fitted_on], voxel_mask).mean(axis=0)) / features.shape[2]
    factors = np.linalg.inv(np.linalg.cholesky(covariances + floor * variance * np.eye(features.shape[2])))
    return np.einsum("pij,spj->spi", factors, features - np.nanmean(features[fitted_on], axis=0))
