"""One training: a warm-up that many methods share, then each method's own objective for as many steps again.

Everything is drawn from (seed, digit): all methods see the same first weights and the same batches.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import mse_loss
from voxout.data_manifests.errors import UserError

from benchmarks.mnist_c.networks import AutoEncoder
from benchmarks.mnist_c.objectives import Guidance, Term, support_size
from benchmarks.mnist_c.protocol import BATCH

LAST = 10
"""M: how many one-class SVMs of the end of a guided training are kept."""
_CHUNK = 800


@dataclass(frozen=True)
class TrainingSettings:
    """The same for every method."""

    warm_up_steps: int = 300
    steps: int = 300
    batch: int = BATCH
    learning_rate: float = 5e-3
    """Of the warm-up; afterwards its peak, where a recipe names no other."""


@dataclass(frozen=True)
class Recipe:
    """What a network is taught.

    Attributes
    ----------
    variational : bool
    reconstructs : bool
        Whether reconstruction stays part of the objective after the warm-up.
    terms : tuple of Term
    rate : float or None
        Peak of the learning rate; None: that of the settings.
    variational_weight : float
        Of the KL divergence to N(0, 1), beside the mean squared error of a pixel.
    """

    variational: bool = False
    reconstructs: bool = True
    terms: tuple[Term, ...] = ()
    rate: float | None = None
    variational_weight: float = 2e-4


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training leaves.

    Attributes
    ----------
    model : AutoEncoder
        In eval mode.
    terms : tuple of Term
        As they were started.
    supports : tensor, (M, m, d), or None
        Of a guided training: the codes that solved the dual in the last M steps, by the encoder of the step in eval
        mode.
    """

    model: AutoEncoder
    terms: tuple[Term, ...]
    supports: torch.Tensor | None


def warm_up(images: torch.Tensor, settings: TrainingSettings, *, variational: bool, seed: int) -> AutoEncoder:
    """A plain (or variational) auto-encoder of normal digits (N, 1, 28, 28), at a learning rate that stays."""
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
    """Go on from a warm-up with a recipe, the learning rate falling off as a half cosine.

    Parameters
    ----------
    recipe : Recipe
    warm : AutoEncoder
        Is left as it is.
    images : tensor, (N, 1, 28, 28)
        Normal digits in [0, 1].
    settings : TrainingSettings
    seed : int
    watch : callable, optional
        Called with the model in eval mode and the share of steps done, from 0 to 1.

    Raises
    ------
    UserError
        The loss is no longer finite.
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
    """Codes (N, d) in eval mode; of a variational encoder, their means."""
    model.eval()
    return torch.cat([model.encoder(part) for part in images.split(_CHUNK)])


@torch.inference_mode()
def reconstruction_error(model: AutoEncoder, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, (N,), from its code in eval mode."""
    model.eval()
    pairs = zip(images.split(_CHUNK), codes.split(_CHUNK), strict=True)
    return torch.cat([((model.decoder(code) - part) ** 2).mean(dim=(1, 2, 3)) for part, code in pairs])


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
            raise UserError(f"training: the loss is {loss.item()} at step {step}, expected a finite number.")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if watch is not None:
        watch(model.eval(), 1.0)
    return supports


def _loss(model, recipe, batch, progress) -> torch.Tensor:
    features = model.encoder.features(batch)
    codes = model.encoder.code(features)
    loss, drawn = codes.new_zeros(()), codes
    if recipe.variational:
        log_variance = model.encoder.log_variance(features)
        drawn = codes + torch.exp(log_variance / 2) * torch.randn_like(codes)
        divergence = 0.5 * (codes**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        loss = loss + recipe.variational_weight * divergence
    if recipe.reconstructs:
        loss = loss + mse_loss(model.decoder(drawn), batch)
    for term in recipe.terms:
        loss = loss + term(codes, progress)
    return loss


def _batches(images: torch.Tensor, size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches in random order, epoch after epoch; what does not fill a batch waits for another order."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(len(images), generator=random)
        yield images[rows[:size]]
        rows = rows[size:]
