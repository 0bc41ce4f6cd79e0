"""Deep SVDD on patches.

Ruff et al., "Deep one-class classification" (ICML 2018): a network phi without biases maps healthy patches near a
fixed centre c, the mean of its outputs before training,

    loss = mean over patches of |phi(x) - c|^2 + (decay / 2) |weights|^2,      score(x) = |phi(x) - c|^2.

There: images of 28 or 32 pixels, leaky ReLU, weight decay 1e-6, Adam at 1e-4. Here: axial patches of 9 x 9 voxels
around every voxel, which a convolutional network maps all at once, and Adam at 1e-3. Coordinates of the centre near 0
are moved to 0.1, as the authors do, since weights of 0 would otherwise be a solution.
"""

from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import nn
from torch.nn import functional

from .presets import Preset
from .slice_networks import SliceNetwork, mean_inside
from .slices import SliceBatches, Slices

_WIDTHS = 32, 32, 32, 16
_SMALLEST_CENTRE = 0.1
_SLICES = 4
"""Slices of a training step: each holds thousands of patches."""


class _PatchNetwork(nn.Module):
    """Convolutions of 3 x 3 voxels without padding and biases, and the centre."""

    centre: torch.Tensor

    def __init__(self, n_channels: int):
        super().__init__()
        sizes, last = (n_channels, *_WIDTHS), len(_WIDTHS) - 1
        self.layers = nn.Sequential(
            *(
                Convolution(
                    2, one, other, kernel_size=3, padding=0, bias=False, norm=None, act="LEAKYRELU", conv_only=n == last
                )
                for n, (one, other) in enumerate(pairwise(sizes))
            )
        )
        self.register_buffer("centre", torch.zeros(_WIDTHS[-1]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Codes (N, d, H, W) of the patches around the voxels of slices (N, M, H, W); 0 beyond a slice."""
        return self.layers(functional.pad(images, (len(_WIDTHS),) * 4))

    def squared_distances(self, images: torch.Tensor) -> torch.Tensor:
        """Squared distances of the codes from the centre, (N, 1, H, W)."""
        return (self(images) - self.centre[:, None, None]).square().sum(dim=1, keepdim=True)


class DeepSvdd(SliceNetwork):
    """Distance of the code of the patch around each voxel from a centre."""

    name = "deep-svdd"
    learning_rate = 1e-3
    weight_decay = 1e-6

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return _PatchNetwork(n_channels)

    @torch.no_grad()
    def initialise(self, network: Any, batches: SliceBatches) -> None:
        """Set the centre."""
        batch = batches[0]
        codes = network(batch.images).movedim(1, -1)[batch.inside[:, 0]]
        centre = codes.mean(dim=0)
        away = torch.where(centre < 0, -_SMALLEST_CENTRE, _SMALLEST_CENTRE)
        network.centre.copy_(torch.where(centre.abs() < _SMALLEST_CENTRE, away, centre))

    def loss(self, network: Any, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the loss."""
        return mean_inside(network.squared_distances(batch.images[:_SLICES]), batch.inside[:_SLICES])

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        network: Any = self.network
        return network.squared_distances(slices.images)[:, 0]
