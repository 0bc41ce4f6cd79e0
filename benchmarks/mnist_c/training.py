"""Training: a warm-up shared by many methods, then the objective of the method for as many steps.

The random numbers depend on (seed, digit) only, so all methods have the same initial weights and batches.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import mse_loss
from voxout.data_manifests.errors import UserError

from .networks import AutoEncoder
from .objectives import Guidance, Term, support_size
from .protocol import BATCH

LAST = 10
"""M: number of final steps of a guided training whose one-class SVMs are kept."""
_CHUNK = 800


@dataclass(frozen=True)
class TrainingSettings:
    """Settings common to all methods."""

    warm_up_steps: int = 300
    steps: int = 300
    batch: int = BATCH
    learning_rate: float = 5e-3
    """Learning rate of the warm-up, and the peak rate afterwards unless the recipe sets another."""


@dataclass(frozen=True)
class Recipe:
    """Training objective of a network.

    Attributes
    ----------
    variational : bool
    reconstructs : bool
        Whether the objective includes reconstruction after the warm-up.
    terms : tuple of Term
    rate : float or None
        Peak learning rate; None: the one of the settings.
    variational_weight : float
        Weight of the KL divergence to N(0, 1), relative to the mean squared error per pixel.
    """

    variational: bool = False
    reconstructs: bool = True
    terms: tuple[Term, ...] = ()
    rate: float | None = None
    variational_weight: float = 2e-4


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of a training.

    Attributes
    ----------
    model : AutoEncoder
        In eval mode.
    terms : tuple of Term
        Terms as initialised by `Term.start`.
    supports : tensor, (M, m, d), or None
        Guided trainings only: latents, in eval mode, that the one-class SVMs of the last M steps were fitted on.
    """

    model: AutoEncoder
    terms: tuple[Term, ...]
    supports: torch.Tensor | None


def warm_up(images: torch.Tensor, settings: TrainingSettings, *, variational: bool, seed: int) -> AutoEncoder:
    """Train a plain (or variational) auto-encoder on normal digits (N, 1, 28, 28), with a constant learning rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoEncoder(variational=variational)
        _run(model, Recipe(variational), images, settings, settings.warm_up_steps, seed, lambda progress: 1.0)
    return model.eval()


def train(
    recipe: Recipe,
    warm: AutoEncoder,
    images: torch.Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    watch: Callable[[AutoEncoder, float], None] | None = None,
) -> Trained:
    """Continue a warm-up with a recipe, with cosine decay of the learning rate.

    Parameters
    ----------
    recipe : Recipe
    warm : AutoEncoder
        Is not changed.
    images : tensor, (N, 1, 28, 28)
        Normal digits in [0, 1].
    settings : TrainingSettings
    seed : int
    watch : callable, optional
        Called with the model in eval mode and the fraction of steps done.

    Raises
    ------
    UserError
        The loss is not finite.
    """
    model = copy.deepcopy(warm)
    terms = tuple(term.start(encode(model, images)) for term in recipe.terms)
    started = replace(recipe, terms=terms)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        supports = _run(
            model,
            started,
            images,
            settings,
            settings.steps,
            seed + 1,
            lambda p: 0.5 * (1 + math.cos(math.pi * p)),
            watch,
        )
    return Trained(model.eval(), terms, torch.stack(supports) if supports else None)


@torch.inference_mode()
def encode(model: AutoEncoder, images: torch.Tensor) -> torch.Tensor:
    """Latents (N, d) in eval mode; their means for a variational encoder."""
    model.eval()
    return torch.cat([model.encoder(part) for part in images.split(_CHUNK)])


@torch.inference_mode()
def reconstruction_error(model: AutoEncoder, images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, (N,), decoded from its latent in eval mode."""
    model.eval()
    pairs = zip(images.split(_CHUNK), latents.split(_CHUNK), strict=True)
    return torch.cat([((model.decoder(latent) - part) ** 2).mean(dim=(1, 2, 3)) for part, latent in pairs])


def _run(model, recipe, images, settings, steps, seed, rate, watch=None) -> list[torch.Tensor]:
    peak = recipe.rate or settings.learning_rate
    optimiser = torch.optim.Adam(model.parameters(), lr=peak)
    guided = any(isinstance(term, Guidance) for term in recipe.terms)
    supports = []
    model.train()
    for step, batch in enumerate(_batches(images, settings.batch, steps, seed)):
        if watch is not None and (step * 5) % steps < 5:
            watch(model.eval(), step / steps)
            model.train()
        if guided and step >= steps - LAST:
            supports.append(encode(model, batch[: support_size(len(batch))]))
            model.train()
        for group in optimiser.param_groups:
            group["lr"] = peak * rate(step / steps)
        loss = _loss(model, recipe, batch, step / steps)
        if not torch.isfinite(loss):
            raise UserError(
                f"training: the loss is {loss.item()} at step {step}, expected a finite number. "
                "Lower the learning rate."
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if watch is not None:
        watch(model.eval(), 1.0)
    return supports


def _loss(model, recipe, batch, progress) -> torch.Tensor:
    features = model.encoder.features(batch)
    latents = model.encoder.code(features)
    loss, drawn = latents.new_zeros(()), latents
    if recipe.variational:
        log_variance = model.encoder.log_variance(features)
        drawn = latents + torch.exp(log_variance / 2) * torch.randn_like(latents)
        divergence = 0.5 * (latents**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        loss = loss + recipe.variational_weight * divergence
    if recipe.reconstructs:
        loss = loss + mse_loss(model.decoder(drawn), batch)
    for term in recipe.terms:
        loss = loss + term(latents, progress)
    return loss


def _batches(images: torch.Tensor, size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches in random order, epoch by epoch; an incomplete last batch is dropped."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(len(images), generator=random)
        yield images[rows[:size]]
        rows = rows[size:]
