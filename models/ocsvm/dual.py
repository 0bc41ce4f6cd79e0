"""Exact solution of the dual of the one-class SVM, for a batch of locations.

Minimise ``1/2 a'Ka`` subject to ``sum(a) = nu*m`` and ``0 <= a_i <= 1``, with ``K_ij = exp(-gamma*|z_i - z_j|^2)``
(Schölkopf et al., Neural Computation 2001, in the scale of LIBSVM and scikit-learn). The decision function is
``F(z) = sum_i a_i k(z_i, z) - offset``, positive for inliers; the offset is the multiplier of the equality
constraint: the common value of ``(Ka)_i`` over the free vectors. With weights w, ``sum(a) = nu*sum(w)`` and
``0 <= a_i <= w_i`` (`weights`).

CPU arrays and tensors are solved by `numba_solver`, CUDA tensors by `torch_solver`; both to machine precision.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data_manifests.errors import UserError
from . import torch_solver
from .kernel import kernel_gamma
from .numba_solver import solve as ocsvm_cpu
from .weights import checked_weights

_LOCATIONS_A_THREAD = 64
# Smaller values would give coefficients at rounding level.
_SMALLEST_NU = 1e-6


@dataclass(frozen=True, eq=False)
class DualSolution:
    """Solution of the dual at B locations, in float64: arrays for arrays, tensors for tensors.

    Attributes
    ----------
    dual_coef : (B, m)
        Dual coefficients a, from 0 to 1 (or to the weight), exactly so at the bounds. They sum to nu*m.
    offset : (B,)
        In the scale of scikit-learn.
    kkt_gap : (B,)
        Highest gradient over a > 0 minus the lowest over a < 1 (or the weight); 0 at the optimum. Compare it with the
        mean of the off-diagonal elements of 1 - K.
    free : (B, m), bool
        Vectors on the margin, 0 < a < 1 (or the weight).
    gamma : (B,)
        Kernel parameter that was used.
    """

    dual_coef: Any
    offset: Any
    kkt_gap: Any
    free: Any
    gamma: Any


def solve_dual(latents, *, nu: float, gamma: float | str, weights=None) -> DualSolution:
    """Solve the dual at every location of a batch.

    Parameters
    ----------
    latents : ndarray or tensor, (B, m, d)
        m latents at each of B locations, of any float type. Computed in float64; tensors are detached.
    nu : float
        In (0, 1]: upper bound of the fraction of outliers, lower bound of the fraction of support vectors.
    gamma : float or str
        As in `kernel.kernel_gamma`; "scale" does not depend on the weights.
    weights : ndarray, (m,) or (B, m), optional
        Weight of each latent, as scikit-learn's `sample_weight`; by default 1.

    Raises
    ------
    UserError
        A shape is wrong, nu, gamma or a weight is out of range, or latents are not finite (names their first-axis
        indices).
    """
    check_nu(nu)
    check_shape(latents, "latents")
    check_finite(latents, "latents")
    bounds = weights_of_each(checked_weights(weights, latents.shape[1], latents.shape[0]), latents)
    if isinstance(latents, torch.Tensor):
        points = latents.detach().to(torch.float64)
        width = kernel_gamma(points, gamma)
        if points.is_cuda:
            solved = torch_solver.solve(points, width, nu, torch.from_numpy(bounds).to(points.device))
            return DualSolution(solved.dual_coef, solved.offset, solved.kkt_gap, solved.free, width)
        a, offset, gap, free = map(torch.from_numpy, _solve_arrays(points.numpy(), bounds, nu, width.numpy()))
        return DualSolution(a, offset, gap, free, width)
    points = np.asarray(latents, dtype=np.float64)
    width = kernel_gamma(points, gamma)
    return DualSolution(*_solve_arrays(points, bounds, nu, width), width)


def weights_of_each(weights: np.ndarray | None, latents) -> np.ndarray:
    """Weights (B, m) of latents (B, m, d)."""
    weights = np.ones(latents.shape[1]) if weights is None else weights
    return np.ascontiguousarray(np.broadcast_to(weights, tuple(latents.shape[:2])))


def _solve_arrays(
    points: np.ndarray, weights: np.ndarray, nu: float, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    batch, m, _ = points.shape
    points = np.ascontiguousarray(points)
    a, free = np.empty((batch, m)), np.empty((batch, m), dtype=bool)
    offset, gap = np.empty(batch), np.empty(batch)

    def solve(part: slice) -> None:
        ocsvm_cpu.solve_batch(
            points[part], weights[part], gamma[part], float(nu), a[part], offset[part], gap[part], free[part]
        )

    in_threads(solve, batch, step=_LOCATIONS_A_THREAD, jobs=torch.get_num_threads())
    return a, offset, gap, free


def dual_mass(nu: float, weight: np.ndarray) -> np.ndarray:
    """Return sums of a, nu times sums of weights; rounded to integers if they differ by rounding error only."""
    total = nu * weight
    nearest = np.round(total)
    return np.where((abs(total - nearest) < 1e-9) & (nearest > 0), nearest, total)


def in_threads(function: Callable[[slice], None], count: int, *, step: int, jobs: int) -> None:
    """Call `function` in threads on slices that cover ``range(count)`` (the compiled solver releases the GIL)."""
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    if jobs == 1 or len(parts) <= 1:
        if count:
            function(slice(0, count))
        return
    with ThreadPoolExecutor(min(jobs, len(parts))) as pool:
        list(pool.map(function, parts))


def thread_count(jobs: int | None) -> int:
    """Return `jobs`, or if None the number of cores available to this process."""
    if jobs is not None:
        return max(jobs, 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_nu(nu: float) -> None:
    """Raise UserError if nu is out of range."""
    if not _SMALLEST_NU <= nu <= 1:
        raise UserError(
            f"nu is {nu}, expected a number from {_SMALLEST_NU:g} to 1. Set nu to the fraction of outliers to allow."
        )


def check_shape(latents, name: str) -> None:
    """Raise UserError unless the latents have the shape (B, m, d) with m and d above 0."""
    shape = tuple(latents.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise UserError(
            f"{name} have the shape {shape}, expected three axes (voxels, subjects, dimensions), the last two not "
            "empty. Reshape the latents."
        )


def check_finite(latents, name: str) -> None:
    """Raise UserError if latents are NaN or infinite; the message names the voxels (indices of the first axis)."""
    if isinstance(latents, torch.Tensor):
        latents = latents.detach()
        # A sum is finite only if all terms are, so valid latents take a single pass.
        if bool(torch.isfinite(latents.sum(dtype=torch.float64))):
            return
        bad = (~torch.isfinite(latents)).any(dim=2).any(dim=1).nonzero().flatten().cpu().numpy()
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            total = latents.sum(dtype=np.float64)
        if np.isfinite(total):
            return
        bad = np.flatnonzero(~np.isfinite(latents).all(axis=(1, 2)))
    if len(bad):
        raise UserError(f"{name} are NaN or infinite at {named(bad)}, expected finite numbers. Check the encoder.")


def named(voxels: np.ndarray) -> str:
    """Text with the first five voxel indices, as in "voxels 3, 7"."""
    few = ", ".join(str(index) for index in voxels[:5])
    word = "voxel" if len(voxels) == 1 else "voxels"
    return f"{word} {few}" + (f" and {len(voxels) - 5} more" if len(voxels) > 5 else "")
