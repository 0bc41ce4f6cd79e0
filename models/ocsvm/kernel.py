"""RBF kernel: choice of gamma, and the kernel minus 1.

``k(x, y) = exp(-gamma*|x - y|^2)``. The sum of the dual coefficients of a one-class SVM is fixed, so ``k - 1`` gives
the same solution as ``k``. It is computed as ``expm1(-gamma*|x - y|^2)``, which keeps full relative precision where the
kernel is nearly flat (small gamma, or latents that hardly vary).
"""

from typing import Any

import numpy as np
import torch

from ...data_manifests.errors import UserError
from ..settings import resolve_gamma


def kernel_gamma(latents, gamma: float | str) -> Any:
    """Gamma of every voxel.

    Parameters
    ----------
    latents : ndarray or tensor, (B, m, d)
    gamma : float or str
        A number above 0; "scale": 1/(d*variance), with the variance of all m*d values of a voxel, as in scikit-learn
        (1 if they are all equal); "auto": 1/d; or a number divided by d, such as "0.1/d".

    Returns
    -------
    ndarray or tensor, (B,), float64
        A tensor, differentiable with respect to the latents, for a tensor.

    Raises
    ------
    UserError
        Gamma is not one of these.
    """
    batch, m, dimension = latents.shape
    value = checked_gamma(gamma, dimension)
    if isinstance(latents, torch.Tensor):
        if value != "scale":
            return torch.full((batch,), float(value), dtype=torch.float64, device=latents.device)
        numbers = latents.to(torch.float64).flatten(1)
        # torch.var, which uses Welford's updates, takes ten times as long.
        variance = ((numbers - numbers.mean(dim=1, keepdim=True)) ** 2).mean(dim=1)
        # Rounding may leave a variance above 0 even if all values are equal.
        differ = (numbers != numbers[:, :1]).any(dim=1) & (variance > 0)
        return 1 / torch.where(differ, dimension * variance, 1.0)
    if value != "scale":
        return np.full(batch, float(value))
    numbers = np.asarray(latents, dtype=np.float64).reshape(batch, m * dimension)
    variance = numbers.var(axis=1)
    differ = (numbers != numbers[:, :1]).any(axis=1) & (variance > 0)
    return 1 / np.where(differ, dimension * variance, 1.0)


def checked_gamma(gamma: float | str, dimension: int) -> float | str:
    """Gamma as a number, or "scale".

    Raises
    ------
    UserError
        Gamma is not one of the values of `kernel_gamma`.
    """
    try:
        value = resolve_gamma(gamma, dimension)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{error}. Set gamma to a number above 0, "scale", "auto" or a number divided by d, such as "0.1/d".'
        ) from error
    return 1 / dimension if value == "auto" else value


def centred_kernel(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """K - 1 between all x (B, m, d) and all y (B, q, d) of the same location: (B, m, q).

    Distances are computed from differences, as the expansion with norms is inexact for near neighbours.
    """
    distance = x.new_zeros(x.shape[0], x.shape[1], y.shape[1])
    for k in range(x.shape[2]):
        distance += (x[:, :, None, k] - y[:, None, :, k]) ** 2
    return torch.expm1(-gamma[:, None, None] * distance)
