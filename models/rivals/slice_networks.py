"""Common part of the methods with a network on axial slices: fit, dense scoring."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .presets import Preset
from .scans import Controls, Scan, require_controls
from .slices import MULTIPLE, SliceBatches, SliceFrame, Slices
from .training import Plan, initial_network, train_network

_SLICES_AT_ONCE = 16
STRIDES = (2,) * (MULTIPLE.bit_length() - 1)
"""Of networks that halve a slice as often as its edges, multiples of `MULTIPLE`, allow."""


class SliceNetwork:
    """Method with one network on slices; a subclass defines network, loss and slice scores.

    Attributes
    ----------
    name : str
        For messages.
    learning_rate, weight_decay : float
        Of Adam.
    fewest_controls : int
        See `Rival`.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float]
    weight_decay: ClassVar[float] = 0.0
    fewest_controls = 4
    is_costly = True

    def steps(self, preset: Preset) -> int:
        """Return the number of training steps, at most."""
        return preset.steps

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network for slices (n_channels, *size), with random weights."""
        raise NotImplementedError

    def initialise(self, network: nn.Module, batches: SliceBatches) -> None:
        """Set what depends on the controls before the first step."""

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the training loss."""
        raise NotImplementedError

    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Score slices, (N, H, W)."""
        raise NotImplementedError

    def fit(self, controls: Controls) -> None:
        """Train the network on most of the controls, and stop by the others."""
        require_controls(self.name, len(controls), self.fewest_controls)
        self.controls, self.preset = controls, controls.preset
        self.frame = SliceFrame.around(controls.mask)
        self.network = self.trained(controls, controls.seed)

    def trained(self, controls: Controls, seed: int) -> nn.Module:
        """Train one network, with a checkpoint for its seed."""
        n_channels, size = len(controls.channels.modalities), self.frame.size
        network = initial_network(lambda: self.make(n_channels, size, self.preset), seed, controls.device)
        learnt_from, held_back = (
            SliceBatches.of(controls, keys, self.frame, seed + number)
            for number, keys in enumerate(controls.monitored())
        )
        self.initialise(network, learnt_from)
        folder = controls.folder / f"{self.name}-{seed}"
        steps = self.steps(self.preset)
        plan = Plan(self.name, folder, steps, self.learning_rate, seed, self.weight_decay, controls.device)
        return train_network(network, self.loss, learnt_from, held_back, plan)

    def score(self, subject: Scan) -> np.ndarray:
        """Score the slices of a subject."""
        slices = Slices.of(subject, self.frame)
        scores = [
            self.slice_scores(
                Slices(
                    slices.images[start : start + _SLICES_AT_ONCE].to(self.controls.device),
                    slices.inside[start : start + _SLICES_AT_ONCE].to(self.controls.device),
                )
            ).detach().cpu().numpy()
            for start in range(0, len(slices.images), _SLICES_AT_ONCE)
        ]  # fmt: skip
        return self.finished(self.frame.paste(np.concatenate(scores)), subject)

    def finished(self, volume: np.ndarray, subject: Scan) -> np.ndarray:
        """Apply what a method does to the whole map at the end."""
        return volume


def residual(images: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference over the modalities: (N, M, H, W) twice to (N, H, W)."""
    return (images - reconstructed).abs().mean(dim=1)


def mean_inside(values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean of values (N, M, H, W) over the voxels in the brain (N, 1, H, W)."""
    return (values * inside).sum() / (inside.sum() * values.shape[1]).clamp(min=1)


def enlarged(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate maps (N, C, h, w) bilinearly to another size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mu, exp(logvar)) from N(0, 1), summed over the latent and averaged over the batch (N, ...)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1).mean()


def normal_like(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw standard normal numbers in the shape of some values."""
    return torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype)


def box_masks(
    shape: Sequence[int], generator: torch.Generator, device: torch.device | str, boxes: int = 3
) -> torch.Tensor:
    """Random rectangles of an eighth to a third of a slice's edges, (N, 1, H, W) bool.

    Parameters
    ----------
    shape : (N, H, W)
    generator : Generator
    device : str or torch.device
    boxes : int
        In each slice.
    """
    n, *edges = shape
    covered = torch.zeros((n, 1, *edges), dtype=torch.bool, device=device)
    for _ in range(boxes):
        along = []
        for edge in edges:
            length = edge * (1 / 8 + (1 / 3 - 1 / 8) * torch.rand(n, generator=generator, device=device))
            first = (edge - length) * torch.rand(n, generator=generator, device=device)
            at = torch.arange(edge, device=device) + 0.5
            along.append((at >= first[:, None]) & (at < (first + length)[:, None]))
        covered |= (along[0][:, :, None] & along[1][:, None, :])[:, None]
    return covered
