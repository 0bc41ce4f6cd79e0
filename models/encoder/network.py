"""Patch auto-encoder: maps a patch to a latent vector of its central voxel.

Convolutions have no padding and reduce the patch to 1x1, so that a latent depends only on its patch and the same
weights can be applied densely to whole slices (`dense_inference`). Each convolution is followed by GELU and a
normalisation; as published, batch norm (Pinon, Trombetta, Lartizien, arXiv 2507.21164, section 4). With several patch
shapes, each has a separate branch, and a linear layer combines their latents into one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn.functional import mse_loss

from ...data_manifests.errors import UserError
from ...preprocessing.patches.voxel_mask import patch_size_vox
from ..settings import EncoderSettings
from .patch_shape import Patches, PatchShape

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Step:
    """Square or cubic convolution: edge length and stride, in voxels."""

    kernel: int
    stride: int = 1


LAYERS: dict[int, tuple[Step, ...]] = {
    3: (Step(3), Step(1)),
    5: (Step(3), Step(3)),
    7: (Step(3), Step(3), Step(3)),
    9: (Step(3), Step(3), Step(3), Step(3)),
    11: (Step(3), Step(3, stride=3), Step(3)),
    13: (Step(3), Step(3), Step(3, stride=3), Step(3)),
    15: (Step(5), Step(3), Step(3, stride=3), Step(3)),
}
"""Convolutions that reduce each patch size in voxels to 1x1. 15 is as published: 15 -> 11 -> 9 -> 3 -> 1."""

HIDDEN_FILTERS: dict[str, tuple[int, ...]] = {"paper": (3, 4, 12), "wide": (16, 24, 32)}
"""Filters of the layers before the latent; networks with fewer layers use the last ones."""


def patch_shapes_of(settings: EncoderSettings, spacing_mm: float) -> tuple[PatchShape, ...]:
    """Patch shapes of the settings in voxels, without duplicates; at least the smallest size of `LAYERS`.

    Raises
    ------
    UserError
        There is no network for a size; the message lists the valid sizes in mm at this spacing.
    """
    sizes = [max(patch_size_vox(size_mm, spacing_mm), min(LAYERS)) for size_mm in settings.patch_size_mm]
    for size in sizes:
        if size not in LAYERS:
            valid = ", ".join(f"{size * spacing_mm:g}" for size in LAYERS)
            raise UserError(
                f"models.encoder.patch_size_mm: is {size} voxels at {spacing_mm:g} mm spacing, expected one of {valid} "
                "mm. Choose one of these sizes."
            )
    return tuple(dict.fromkeys(PatchShape(plane, size) for plane in settings.planes for size in sizes))


class VoxelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel of maps (N, C, ...); equal on patches and on whole slices."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise maps (N, C, ...)."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class PatchEncoder(nn.Module):
    """Encoder of patches to latents (..., latent_size).

    Parameters
    ----------
    channels : int
    patch_shapes : sequence of PatchShape
    settings : EncoderSettings
    """

    def __init__(self, channels: int, patch_shapes: Sequence[PatchShape], settings: EncoderSettings):
        super().__init__()
        self.channels, self.patch_shapes, self.latent_size = channels, tuple(patch_shapes), settings.latent_size
        self.branches = nn.ModuleList(_down(channels, patch_shape, settings) for patch_shape in patch_shapes)
        self.join = nn.Sequential()
        if len(patch_shapes) > 1:
            joined = nn.Linear(len(patch_shapes) * self.latent_size, self.latent_size)
            self.join.extend([joined, nn.BatchNorm1d(self.latent_size)])

    @property
    def latent_norm(self) -> BatchNorm:
        """Last batch norm, which sets the scale of the latents."""
        layers = cast(nn.Sequential, self.join or self.branches[0])
        return cast(BatchNorm, layers[-1])

    def forward(self, patches: Patches) -> torch.Tensor:
        """Encode patches, one tensor (..., C, p, p[, p]) per patch shape, to latents (..., latent_size)."""
        around = patches[0].shape[: -1 - len(self.patch_shapes[0].axes)]
        latents = [
            branch(patch.flatten(0, len(around) - 1)) for branch, patch in zip(self.branches, patches, strict=True)
        ]
        return self.joined([latent.flatten(1) for latent in latents]).unflatten(0, around)

    def joined(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine the latents (N, latent_size) of all patch shapes into one."""
        return self.join(torch.cat([*latents], dim=1))


class PatchDecoder(nn.Module):
    """Decoder of latents (..., latent_size) to patches: mirrored branches of the encoder, ending in a sigmoid."""

    def __init__(self, channels: int, patch_shapes: Sequence[PatchShape], settings: EncoderSettings):
        super().__init__()
        self.branches = nn.ModuleList(_up(channels, patch_shape, settings) for patch_shape in patch_shapes)
        self.axes = [len(patch_shape.axes) for patch_shape in patch_shapes]

    def forward(self, latents: torch.Tensor) -> Patches:
        """Decode latents (..., latent_size) to patches, one tensor (..., C, p, p[, p]) per patch shape."""
        around, flat = latents.shape[:-1], latents.flatten(0, -2)
        patches = (
            branch(flat.reshape(*flat.shape, *[1] * axes))
            for branch, axes in zip(self.branches, self.axes, strict=True)
        )
        return tuple(patch.unflatten(0, around) for patch in patches)


class PatchAutoEncoder(nn.Module):
    """Encoder and decoder; the forward pass returns the reconstruction error."""

    def __init__(self, channels: int, patch_shapes: Sequence[PatchShape], settings: EncoderSettings):
        super().__init__()
        self.encoder = PatchEncoder(channels, patch_shapes, settings)
        self.decoder = PatchDecoder(channels, patch_shapes, settings)

    def forward(self, patches: Patches) -> torch.Tensor:
        """Return the reconstruction error of patches, a scalar."""
        return self.error(self.encoder(patches), patches)

    def error(self, latents: torch.Tensor, patches: Patches) -> torch.Tensor:
        """Mean squared error of the patches decoded from latents; all patch shapes have equal weight."""
        return torch.stack([mse_loss(*pair) for pair in zip(self.decoder(latents), patches, strict=True)]).mean()

    def inner_norms(self) -> list[BatchNorm]:
        """All batch norms except the one that scales the latents."""
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        return [norm for norm in norms if norm is not self.encoder.latent_norm]


_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _filters(patch_shape: PatchShape, settings: EncoderSettings) -> tuple[int, ...]:
    return HIDDEN_FILTERS[settings.width][-(len(LAYERS[patch_shape.size_vox]) - 1) :]


def _inner_norm(patch_shape: PatchShape, settings: EncoderSettings, filters: int) -> nn.Module:
    return VoxelNorm(filters) if settings.norm == "layer" else _BATCH_NORMS[len(patch_shape.axes)](filters)


def _down(channels: int, patch_shape: PatchShape, settings: EncoderSettings) -> nn.Sequential:
    """Branch of the encoder for one patch shape."""
    steps, axes = LAYERS[patch_shape.size_vox], len(patch_shape.axes)
    layers: list[nn.Module] = []
    for step, (f_in, f_out) in zip(
        steps, pairwise([channels, *_filters(patch_shape, settings), settings.latent_size]), strict=True
    ):
        layers += [_CONVOLUTIONS[axes](f_in, f_out, step.kernel, step.stride), nn.GELU()]
        layers.append(_inner_norm(patch_shape, settings, f_out))
    # The last norm is always a batch norm: with a single patch shape, it sets the scale of the latents.
    return nn.Sequential(*layers[:-1], _BATCH_NORMS[axes](settings.latent_size))


def _up(channels: int, patch_shape: PatchShape, settings: EncoderSettings) -> nn.Sequential:
    """Branch of the decoder for one patch shape."""
    steps, axes = LAYERS[patch_shape.size_vox][::-1], len(patch_shape.axes)
    layers: list[nn.Module] = []
    for step, (f_in, f_out) in zip(
        steps, pairwise([settings.latent_size, *_filters(patch_shape, settings)[::-1], channels]), strict=True
    ):
        layers += [_TRANSPOSED[axes](f_in, f_out, step.kernel, step.stride), nn.GELU()]
        layers.append(_inner_norm(patch_shape, settings, f_out))
    return nn.Sequential(*layers[:-2], nn.Sigmoid())
