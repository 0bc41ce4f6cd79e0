"""The RBF kernel: which gamma, and why it is used with 1 taken off.

``k(x, y) = exp(-gamma*|x - y|^2)``. A one-class SVM fixes the sum of its dual coefficients, so ``k - 1`` gives the same
solution as ``k``; it is computed as ``expm1(-gamma*|x - y|^2)``, which keeps all its digits where the kernel is nearly
flat (small gamma, or latents that hardly vary).
"""

from typing import Any

import numpy as np
import torch

from ...data_manifests.errors import UserError
from ..settings import resolve_gamma


def kernel_gamma(latents, gamma: float | str) -> Any:
    """Gamma of every location.

    Parameters
    ----------
    latents : ndarray or tensor, (B, m, d)
    gamma : float or str
        A number above 0; "scale", 1/(d*variance) with the variance of all m*d numbers of a location, as in
        scikit-learn (1 where they are all equal); "auto", 1/d; or a number a dimension, "0.1/d".

    Returns
    -------
    ndarray or tensor, (B,), float64
        Differentiable in the latents when they are a tensor.

    Raises
    ------
    UserError
        Gamma is none of these.
    """
    batch, m, dimension = latents.shape
    value = checked_gamma(gamma, dimension)
    if isinstance(latents, torch.Tensor):
        if value != "scale":
            return torch.full((batch,), float(value), dtype=torch.float64, device=latents.device)
        numbers = latents.to(torch.float64).flatten(1)
        # torch's own variance, by Welford's updates, takes ten times as long.
        variance = ((numbers - numbers.mean(dim=1, keepdim=True)) ** 2).mean(dim=1)
        # Of equal numbers, too, rounding may leave a variance.
        differ = (numbers != numbers[:, :1]).any(dim=1) & (variance > 0)
        return 1 / torch.where(differ, dimension * variance, 1.0)
    if value != "scale":
        return np.full(batch, float(value))
    numbers = np.asarray(latents, dtype=np.float64).reshape(batch, m * dimension)
    variance = numbers.var(axis=1)
    differ = (numbers != numbers[:, :1]).any(axis=1) & (variance > 0)
    return 1 / np.where(differ, dimension * variance, 1.0)


def checked_gamma(gamma: float | str, dimension: int) -> float | str:
    """A number, or "scale".

    Raises
    ------
    UserError
        Gamma is nothing that `kernel_gamma` knows.
    """
    try:
        value = resolve_gamma(gamma, dimension)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{error}. Set gamma to a number above 0, "scale", "auto" or, for instance, "0.1/d".'
        ) from error
    return 1 / dimension if value == "auto" else value


def centred_kernel(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """K - 1 between all x (B, m, d) and all y (B, q, d) of a location: (B, m, q).

    Distances are summed from differences: the expansion with norms would lose the digits of near neighbours.
    """
    distance = x.new_zeros(x.shape[0], x.shape[1], y.shape[1])
    for k in range(x.shape[2]):
        distance += (x[:, :, None, k] - y[:, None, :, k]) ** 2
    return torch.expm1(-gamma[:, None, None] * distance)
