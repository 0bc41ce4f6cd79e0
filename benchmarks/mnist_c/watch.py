"""Monitoring of the latents of normal digits: collapse, and latents during training."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from voxout.models.encoder.monitor import effective_rank
from voxout.models.ocsvm.kernel import centred_kernel, kernel_gamma

from .networks import AutoEncoder
from .training import encode, reconstruction_error

_SHOWN = 200


@dataclass(frozen=True)
class LatentMetrics:
    """Metrics of a finished training.

    Attributes
    ----------
    mse_validation : float
        Mean squared reconstruction error of validation digits.
    kernel_mean : float
        Mean kernel value (gamma "scale") between latents of different normal digits; near 0 or 1, the kernel is
        useless.
    latent_scale : float
        Root mean square of the latents about their mean.
    effective_rank : float
        Effective rank of the latents.
    """

    mse_validation: float
    kernel_mean: float
    latent_scale: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        return self.effective_rank < 1.5 or not 1e-3 < self.kernel_mean < 1 - 1e-6


def monitor(model: AutoEncoder, images: torch.Tensor, validation: torch.Tensor) -> LatentMetrics:
    """Compute the metrics on normal training and validation digits (N, 1, 28, 28)."""
    latents = encode(model, images)
    few = latents[None, :_SHOWN].double()
    kernel = 1 + centred_kernel(few, few, kernel_gamma(few, "scale"))[0]
    n = len(kernel)
    error = reconstruction_error(model, validation, encode(model, validation))
    return LatentMetrics(
        mse_validation=error.mean().item(),
        kernel_mean=((kernel.sum() - n) / (n * (n - 1))).item(),
        latent_scale=latents.var(dim=0, correction=0).mean().sqrt().item(),
        effective_rank=effective_rank(latents),
    )


@dataclass(eq=False)
class LatentFilm:
    """Latents of fixed digits, recorded during training.

    Attributes
    ----------
    images : tensor, (N, 1, 28, 28)
    is_other : ndarray of bool, (N,)
        Which of them are anomalous.
    shares : list of float
        Fractions of the steps done.
    frames : list of ndarray, (N, d)
    """

    images: torch.Tensor
    is_other: np.ndarray
    shares: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def __call__(self, model: AutoEncoder, share: float) -> None:
        self.shares.append(share)
        self.frames.append(encode(model, self.images).numpy())


def flattened(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Project frames (F, N, d) to the two principal axes of the last, (F, N, 2), in units of its SD on the first."""
    last = np.asarray(frames[-1], np.float64)
    centre = last.mean(axis=0)
    _, spread, axes = np.linalg.svd(last - centre, full_matrices=False)
    unit = max(spread[0] / np.sqrt(len(last)), 1e-12)
    return np.stack([(np.asarray(frame, np.float64) - centre) @ axes[:2].T / unit for frame in frames])
