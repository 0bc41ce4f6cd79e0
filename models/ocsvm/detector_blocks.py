"""Fitting and scoring of the detectors of a block of voxels: arrays with numba, tensors with batched torch."""

from dataclasses import replace

import numpy as np
import torch

from . import torch_solver
from .blocks import as_floats
from .detector_arrays import DetectorArrays, coefficients
from .kernel import kernel_gamma
from .numba_solver import detectors as compiled


def fit_block(block, nu: float, gamma: float | str, weights: np.ndarray | None = None) -> DetectorArrays:
    """Fit one detector at each of n voxels.

    Parameters
    ----------
    block : (S, n, d)
        An array in float32 or float64, or a tensor of any float type. Subjects whose latents are all NaN at a voxel
        are left out of the fit there.
    nu : float
    gamma : float or "scale"
    weights : ndarray, (S,), float64, optional
        Weight of each subject; by default 1.

    Returns
    -------
    DetectorArrays
        In full precision. `n_fitted` is -1 at voxels with latents that are infinite or partly NaN, and 0 where all
        subjects with a weight are missing; the other arrays are undefined at these voxels.
    """
    own = np.ones(len(block)) if weights is None else weights
    if isinstance(block, torch.Tensor):
        fitted = _fit_tensor(block, own, nu, gamma)
    else:
        fitted = _fit_array(block, own, nu, gamma)
    return replace(fitted, total_weight=None) if (own == 1).all() else fitted


def score_block(latents, detectors: DetectorArrays):
    """Decision function F of n detectors for latents (N, n, d), given as an array or a tensor.

    Returns
    -------
    scores : (N, n), float64
        NaN where a subject's latents are all NaN.
    broken : ndarray, (n,), bool
        Voxels with latents that are infinite or partly NaN.
    """
    return _score_tensor(latents, detectors) if isinstance(latents, torch.Tensor) else _score_array(latents, detectors)


def _fit_array(block: np.ndarray, weights: np.ndarray, nu: float, gamma: float | str) -> DetectorArrays:
    subjects, n, dimension = block.shape
    # Allocated for all latents; only the pages that are filled take up memory.
    vectors, coef = np.empty((n * subjects, dimension), dtype=block.dtype), np.empty(n * subjects)
    n_support, count = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    offset, width, weight = np.zeros(n), np.zeros(n), np.zeros(n)
    by_scale = gamma == "scale"
    filled = compiled.fit_block(
        block,
        weights,
        float(nu),
        1.0 if by_scale else float(gamma),
        by_scale,
        vectors,
        coef,
        n_support,
        offset,
        width,
        count,
        weight,
    )
    return DetectorArrays(vectors[:filled], coef[:filled], n_support, offset, width, count, weight)


def _fit_tensor(block: torch.Tensor, weights: np.ndarray, nu: float, gamma: float | str) -> DetectorArrays:
    points = block.detach().to(torch.float64).transpose(0, 1)
    present = torch.isfinite(points).all(dim=2)
    broken = (~present & ~torch.isnan(points).all(dim=2)).any(dim=1)
    all_weights = torch.from_numpy(weights).to(points.device)
    total_weight = torch.where(present, all_weights, 0.0).sum(dim=1)
    # A voxel of subjects without a weight is as one without subjects.
    n_present = torch.where(broken | (total_weight == 0), 0, present.sum(dim=1))
    count = torch.where(broken, -1, (present & (all_weights > 0)).sum(dim=1))
    a = torch.zeros(present.shape, dtype=torch.float64, device=points.device)
    offset, width = a.new_zeros(len(a)), a.new_zeros(len(a))
    for m in n_present[n_present > 0].unique().tolist():
        # Voxels with m subjects, solved in one batch.
        here = (n_present == m).nonzero()[:, 0]
        order = present[here].long().argsort(dim=1, descending=True, stable=True)[:, :m]
        z = points[here[:, None], order]
        width[here] = kernel_gamma(z, gamma)
        solved = torch_solver.solve(z, width[here], nu, all_weights[order])
        a[here[:, None], order] = solved.dual_coef
        offset[here] = solved.centred_offset
    support = a > 0
    kept = (points[support], a[support], support.sum(dim=1), offset, width, count, total_weight)
    return DetectorArrays(*(tensor.cpu().numpy() for tensor in kept))


def _score_array(latents: np.ndarray, detectors: DetectorArrays) -> tuple[np.ndarray, np.ndarray]:
    n = len(detectors.n_support)
    start = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(detectors.n_support, out=start[1:])
    scores, broken = np.empty((len(latents), n)), np.zeros(n, dtype=bool)
    compiled.score_block(
        latents,
        as_floats(detectors.support_vectors),
        coefficients(detectors.dual_coef),
        start,
        np.ascontiguousarray(detectors.centred_offset),
        np.ascontiguousarray(detectors.gamma),
        scores,
        broken,
    )
    return scores, broken


def _score_tensor(latents: torch.Tensor, detectors: DetectorArrays) -> tuple[torch.Tensor, np.ndarray]:
    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.float64)).to(latents.device)

    count = torch.from_numpy(detectors.n_support.astype(np.int64)).to(latents.device)
    owner = torch.arange(len(count), device=latents.device).repeat_interleave(count)
    vectors, coef = on_device(detectors.support_vectors), on_device(coefficients(detectors.dual_coef))
    gamma, offset = on_device(detectors.gamma)[owner], on_device(detectors.centred_offset)
    scores = torch.empty(latents.shape[:2], dtype=torch.float64, device=latents.device)
    for row, subject in zip(scores, latents.detach().to(torch.float64), strict=True):
        distance = ((vectors - subject[owner]) ** 2).sum(dim=1)
        terms = coef * torch.expm1(-gamma * distance)
        row[:] = torch.segment_reduce(terms, "sum", lengths=count) - offset
    unusable = ~torch.isfinite(latents).all(dim=2) & ~torch.isnan(latents).all(dim=2)
    return scores, unusable.any(dim=0).cpu().numpy()
