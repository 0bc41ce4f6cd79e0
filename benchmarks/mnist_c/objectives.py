"""Loss terms on the latents of a batch, in addition to reconstruction.

Each term is called with the latents (N, d) of a batch and the progress of training (0 to 1), and returns a scalar.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import cosine_similarity
from voxout.models.ocsvm.guidance_loss import guidance_loss

Routes = Callable[[float], tuple[float, float]]


class Term(Protocol):
    """Term of the loss."""

    def start(self, latents: torch.Tensor) -> "Term":
        """Return the term for a training that starts with these latents of the normal digits."""
        ...

    def __call__(self, latents: torch.Tensor, progress: float) -> torch.Tensor: ...


@dataclass(frozen=True)
class Siamese:
    """1 - cos between latents of random pairs (Pinon et al., MIDL 2023)."""

    weight: float

    def start(self, latents: torch.Tensor) -> "Siamese":
        return self

    def __call__(self, latents: torch.Tensor, progress: float) -> torch.Tensor:
        # Batches are in random order, so neighbours are random pairs.
        return self.weight * (1 - cosine_similarity(latents, latents.roll(1, 0), dim=1)).mean()


@dataclass(frozen=True)
class Sphere:
    """Deep SVDD: squared distance to a centre fixed at the start (Ruff et al., ICML 2018).

    Attributes
    ----------
    weight : float
    nu : float or None
        None: hard objective, the mean distance. Otherwise soft boundary: R^2 + mean excess over R^2 / nu, with R^2 the
        (1 - nu) quantile of the distances in the batch, which minimises the objective over R^2.
    centre : tensor or None
        None before the start.
    """

    weight: float = 1.0
    nu: float | None = None
    centre: torch.Tensor | None = None

    def start(self, latents: torch.Tensor) -> "Sphere":
        centre = latents.mean(dim=0)
        # Centres of 0 could be reached trivially by weights of 0 (Ruff et al., section 3.3).
        centre = torch.where(centre.abs() < 0.1, torch.where(centre < 0, -0.1, 0.1), centre)
        return Sphere(self.weight, self.nu, centre)

    def distance(self, latents: torch.Tensor) -> torch.Tensor:
        """Squared distance of latents (N, d) to the centre, (N,)."""
        assert self.centre is not None
        return ((latents - self.centre) ** 2).sum(dim=1)

    def __call__(self, latents: torch.Tensor, progress: float) -> torch.Tensor:
        distance = self.distance(latents)
        if self.nu is None:
            return self.weight * distance.mean()
        boundary = torch.quantile(distance.detach(), 1 - self.nu)
        return self.weight * (boundary + torch.relu(distance - boundary).mean() / self.nu)


def expander_only(progress: float) -> tuple[float, float]:
    return 1.0, 0.0


def compactor_only(progress: float) -> tuple[float, float]:
    return 0.0, 1.0


def full(progress: float) -> tuple[float, float]:
    return 1.0, 1.0


def schedule(progress: float) -> tuple[float, float]:
    """Expander only for the first half of training, then both."""
    return (1.0, 0.0) if progress < 0.5 else (1.0, 1.0)


@dataclass(frozen=True)
class Guidance:
    """Guidance loss of the brain pipeline; the one-class SVM is fitted on half of the batch, the loss is on the other.

    Attributes
    ----------
    weight : float
        lambda, in the authors' scale.
    nu : float
    gamma : float or str
    routes : callable
        Weights (expander, compactor) of the two gradients, as a function of progress.
    standardised : bool
        Whether the latents of a batch are standardised to mean 0 and variance 1 per dimension, including the gradient.
    """

    weight: float
    nu: float
    gamma: float | str = "scale"
    routes: Routes = schedule
    standardised: bool = False

    def start(self, latents: torch.Tensor) -> "Guidance":
        return self

    def __call__(self, latents: torch.Tensor, progress: float) -> torch.Tensor:
        if self.standardised:
            latents = (latents - latents.mean(dim=0)) / (latents.std(dim=0, correction=0) + 1e-6)
        expander, compactor = self.routes(progress)
        half = support_size(len(latents))
        loss = guidance_loss(
            latents[None, :half],
            latents[None, half:],
            nu=self.nu,
            gamma=self.gamma,
            expander=expander,
            compactor=compactor,
        )
        return self.weight * loss.mean()


def support_size(batch: int) -> int:
    """Number of latents of a batch that the one-class SVM is fitted on."""
    return batch // 2
