"""What becomes of the codes of normal digits: whether a training has collapsed, and pictures of them on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from voxout.models.encoder.monitor import effective_rank
from voxout.models.ocsvm.kernel import centred_kernel, kernel_gamma

from benchmarks.mnist_c.networks import AutoEncoder
from benchmarks.mnist_c.training import encode, reconstruction_error

_SHOWN = 200


@dataclass(frozen=True)
class Watched:
    """Numbers of a finished training.

    Attributes
    ----------
    mse_validation : float
        Mean squared error of the reconstruction of validation digits.
    kernel_mean : float
        Mean kernel value (gamma "scale") between codes of two normal digits: near 0 or near 1 it tells nothing apart.
    latent_scale : float
        Root mean square of the codes about their mean.
    effective_rank : float
        Dimensions that the codes fill.
    """

    mse_validation: float
    kernel_mean: float
    latent_scale: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        return self.effective_rank < 1.5 or not 1e-3 < self.kernel_mean < 1 - 1e-6


def watched(model: AutoEncoder, images: torch.Tensor, validation: torch.Tensor) -> Watched:
    """Judge a model by normal digits (N, 1, 28, 28) that it was trained on and others that it was not."""
    codes = encode(model, images)
    few = codes[None, :_SHOWN].double()
    kernel = 1 + centred_kernel(few, few, kernel_gamma(few, "scale"))[0]
    n = len(kernel)
    error = reconstruction_error(model, validation, encode(model, validation))
    return Watched(
        mse_validation=error.mean().item(),
        kernel_mean=((kernel.sum() - n) / (n * (n - 1))).item(),
        latent_scale=codes.var(dim=0, correction=0).mean().sqrt().item(),
        effective_rank=effective_rank(codes),
    )


@dataclass(eq=False)
class LatentFilm:
    """Codes of the same digits, kept now and then while a network trains.

    Attributes
    ----------
    images : tensor, (N, 1, 28, 28)
    is_other : ndarray of bool, (N,)
        Which of them are no normal digits.
    shares : list of float
        Of the steps done.
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
    """Frames (F, N, d) on the two main axes of the last one, (F, N, 2), in units of its spread."""
    last = np.asarray(frames[-1], np.float64)
    centre = last.mean(axis=0)
    _, spread, axes = np.linalg.svd(last - centre, full_matrices=False)
    unit = max(spread[0] / np.sqrt(len(last)), 1e-12)
    return np.stack([(np.asarray(frame, np.float64) - centre) @ axes[:2].T / unit for frame in frames])
