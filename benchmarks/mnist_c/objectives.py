"""What the methods ask of the codes of a batch, beside reconstruction.

Each term is called with the codes (N, d) of a batch and with how far training is (0 to 1), and gives a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import cosine_similarity
from voxout.models.ocsvm.guidance_loss import guidance_loss

Routes = Callable[[float], tuple[float, float]]


class Term(Protocol):
    """Something to be made small."""

    def start(self, codes: torch.Tensor) -> "Term":
        """The term for a training that begins with these codes of the normal digits."""
        ...

    def __call__(self, codes: torch.Tensor, progress: float) -> torch.Tensor: ...


@dataclass(frozen=True)
class Siamese:
    """1 - cos between codes of random pairs (Pinon et al., MIDL 2023)."""

    weight: float

    def start(self, codes: torch.Tensor) -> "Siamese":
        return self

    def __call__(self, codes: torch.Tensor, progress: float) -> torch.Tensor:
        # A batch is in random order: neighbours are random pairs.
        return self.weight * (1 - cosine_similarity(codes, codes.roll(1, 0), dim=1)).mean()


@dataclass(frozen=True)
class Sphere:
    """Deep SVDD: squared distance to a centre that is fixed at the start (Ruff et al., ICML 2018).

    Attributes
    ----------
    weight : float
    nu : float or None
        None: the hard objective, the mean distance. Otherwise the soft boundary: R^2 + mean excess over R^2 / nu, with
        R^2 the (1 - nu) quantile of the batch's distances, which is where the objective is smallest for them.
    centre : tensor or None
        None before the start.
    """

    weight: float = 1.0
    nu: float | None = None
    centre: torch.Tensor | None = None

    def start(self, codes: torch.Tensor) -> "Sphere":
        centre = codes.mean(dim=0)
        # Without biases, dimensions that are 0 could be fitted by weights of 0 (Ruff et al., section 3.3).
        centre = torch.where(centre.abs() < 0.1, torch.where(centre < 0, -0.1, 0.1), centre)
        return Sphere(self.weight, self.nu, centre)

    def distance(self, codes: torch.Tensor) -> torch.Tensor:
        """Squared distance of codes (N, d) to the centre, (N,)."""
        assert self.centre is not None
        return ((codes - self.centre) ** 2).sum(dim=1)

    def __call__(self, codes: torch.Tensor, progress: float) -> torch.Tensor:
        distance = self.distance(codes)
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
    """The expander alone for the first half, then both."""
    return (1.0, 0.0) if progress < 0.5 else (1.0, 1.0)


@dataclass(frozen=True)
class Guidance:
    """The guidance loss of the brain pipeline; one half of the batch solves the dual, the other carries the loss.

    Attributes
    ----------
    weight : float
        lambda, in the authors' scale.
    nu : float
    gamma : float or str
    routes : callable
        Weights (expander, compactor) of the two gradients, by how far training is.
    standardised : bool
        Each dimension of a batch's codes is brought to mean 0 and variance 1 first, gradient included.
    """

    weight: float
    nu: float
    gamma: float | str = "scale"
    routes: Routes = schedule
    standardised: bool = False

    def start(self, codes: torch.Tensor) -> "Guidance":
        return self

    def __call__(self, codes: torch.Tensor, progress: float) -> torch.Tensor:
        if self.standardised:
            codes = (codes - codes.mean(dim=0)) / (codes.std(dim=0, correction=0) + 1e-6)
        expander, compactor = self.routes(progress)
        half = support_size(len(codes))
        loss = guidance_loss(
            codes[None, :half], codes[None, half:], nu=self.nu, gamma=self.gamma, expander=expander, compactor=compactor
        )
        return self.weight * loss.mean()


def support_size(batch: int) -> int:
    """How many of a batch's codes solve the dual."""
    return batch // 2
