"""One Gaussian per voxel in place of the support vectors: a smaller model, without latents of single controls.

The score of a one-class SVM is 1 minus a mean of ``exp(-gamma*|x - z_i|^2)`` over its support vectors z_i, with weights
w_i that sum to 1. With S the covariance of the z_i, the logarithm of this mean is, to second order in gamma,

    -gamma * ((x - v)' M (x - v) + constant),    M = I - 2*gamma*S.

So a single Gaussian takes the place of all support vectors (a reduced set; Burges, "Simplified support vector decision
rules", ICML 1996). Its centre v and M become part of the whitening, which has a mean and a matrix at every voxel
anyway, and the constant is the distance of its centre in a coordinate of its own, in which every scan is 0. Centre and
constant are chosen for the latents of healthy heads, which in d dimensions lie at a distance of about sqrt(d) from the
origin: at the points at sqrt(d) and -sqrt(d) on each axis, the Gaussian has on average the exact value, and the exact
slope along each axis.

The change is small for a wide kernel, as in the default settings.
"""

from dataclasses import replace

import numpy as np
import torch

from ..features.whitening import Whitening
from ..ocsvm.detector_arrays import coefficients
from ..ocsvm.voxelwise import DetectorField
from .scorers import OneClassSvms

_VOXELS_AT_ONCE = 8192
_SMALLEST_EIGENVALUE = 0.1
"""Of M: where the kernel is so narrow that M has a smaller one, the support vectors cannot be merged."""


def merge_support_vectors(scorer: OneClassSvms) -> OneClassSvms | None:
    """Merge the support vectors of each voxel.

    Returns
    -------
    OneClassSvms or None
        None if the kernel is too narrow, the latents are not whitened, or they are merged already.
    """
    field, whitening = scorer.field, scorer.whitening
    if whitening is None or field.dimension != whitening.mean.shape[1]:
        return None
    size, dimension = len(field), field.dimension
    mean, packed = np.empty_like(whitening.mean), np.empty_like(whitening.packed)
    vectors = np.zeros((size, dimension + 1), np.float32)
    rows, columns = np.tril_indices(dimension)
    for start in range(0, size, _VOXELS_AT_ONCE):
        block = slice(start, min(start + _VOXELS_AT_ONCE, size))
        centre, metric, constant = _gaussians(field, block)
        if np.linalg.eigvalsh(metric)[:, 0].min() < _SMALLEST_EIGENVALUE:
            return None
        factor = whitening.factor(block.start, block.stop).astype(np.float64)
        packed[block] = (_lower_root(metric) @ factor)[:, rows, columns] * whitening.unit
        shift = torch.linalg.solve_triangular(
            torch.from_numpy(factor), torch.from_numpy(centre[:, :, None]), upper=False
        )
        mean[block] = whitening.mean[block] + shift[:, :, 0].numpy()
        vectors[block, -1] = np.sqrt(constant)
    if not np.isfinite(packed).all():
        return None
    arrays = replace(
        field.arrays,
        support_vectors=vectors,
        dual_coef=field.total_dual.astype(np.float32),
        n_support=np.ones(size, np.uint16),
    )
    merged = DetectorField(arrays, field.nu, field.gamma)
    return replace(scorer, field=merged, whitening=Whitening(mean, packed, whitening.unit, whitening.mask_hash))


def _gaussians(field: DetectorField, block: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (n, d), metric M (n, d, d) and constant (n,) of the Gaussian of each voxel of a block."""
    rows, size = slice(field.start[block.start], field.start[block.stop]), block.stop - block.start
    vectors = field.arrays.support_vectors[rows].astype(np.float64)
    coef = coefficients(field.arrays.dual_coef[rows])
    count = field.n_support[block]
    owner, first = np.repeat(np.arange(size), count), field.start[block] - field.start[block.start]
    gamma = np.asarray(field.arrays.gamma[block], np.float64)

    def mean_of(values: np.ndarray) -> np.ndarray:
        weighted = values * (coef / total[owner]).reshape(-1, *[1] * (values.ndim - 1))
        return np.add.reduceat(weighted, first, axis=0)

    total = np.add.reduceat(coef, first)
    offsets = vectors - mean_of(vectors)[owner]
    scatter = mean_of(offsets[:, :, None] * offsets[:, None, :])
    dimension = vectors.shape[1]
    metric = np.eye(dimension) - 2 * gamma[:, None, None] * scatter
    # Squared distances of the support vectors from the points on the axes, (N, 2, d).
    both = 2 * np.sqrt(dimension) * np.stack([-vectors, vectors], axis=1)
    squared = dimension + np.einsum("nd,nd->n", vectors, vectors)[:, None, None] + both
    exact = -np.log1p(mean_of(np.expm1(-gamma[owner, None, None] * squared))) / gamma[:, None, None]
    slope = (exact[:, 0] - exact[:, 1]) / (2 * np.sqrt(dimension))
    centre = np.linalg.solve(metric, -slope[:, :, None] / 2)[:, :, 0]
    of_quadratic = np.trace(metric, axis1=1, axis2=2) - np.einsum("nd,nd->n", centre, slope) / 2
    return centre, metric, np.maximum(exact.mean(axis=(1, 2)) - of_quadratic, 0)


def _lower_root(matrices: np.ndarray) -> np.ndarray:
    """Lower triangular R with R'R = M, for positive definite matrices M (n, d, d)."""
    return np.linalg.cholesky(matrices[:, ::-1, ::-1])[:, ::-1, ::-1].swapaxes(1, 2)
