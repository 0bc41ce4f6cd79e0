"""The patch auto-encoder: a patch becomes a short code that stands for its central voxel.

Every convolution runs without padding until 1x1 is left, so a code depends on its own patch alone, and the same
weights can be run densely over whole slices (`dense_inference`). Each convolution is followed by GELU, then by a norm;
as published, by batch norm (Pinon, Trombetta, Lartizien, arXiv 2507.21164, section 4). Where several windows are looked
at, each has a branch of its own, and a linear layer makes one code of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """One square or cubic convolution of a plan: edge length and stride, in voxels."""

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
"""Patch size in voxels -> convolutions that end at 1x1. 15 is the published one: 15 -> 11 -> 9 -> 3 -> 1."""

HIDDEN_FILTERS: dict[str, tuple[int, ...]] = {"paper": (3, 4, 12), "wide": (16, 24, 32)}
"""Filters of the layers before the code; a shorter plan takes the last of them."""


def patch_shapes_of(settings: EncoderSettings, spacing_mm: float) -> tuple[PatchShape, ...]:
    """The windows of the settings in voxels, each once and none smaller than the smallest plan: grids may be coarse.

    Raises
    ------
    UserError
        There is no plan for a size; the sentence lists the sizes in mm that have one at this spacing.
    """
    sizes = [max(patch_size_vox(size_mm, spacing_mm), min(LAYERS)) for size_mm in settings.patch_size_mm]
    for size in sizes:
        if size not in LAYERS:
            valid = ", ".join(f"{size * spacing_mm:g}" for size in LAYERS)
            raise UserError(
                f"models.encoder.patch_size_mm: comes to {size} voxels of {spacing_mm:g} mm, for which there is no "
                f"network. At this spacing choose of {valid} mm."
            )
    return tuple(dict.fromkeys(PatchShape(plane, size) for plane in settings.planes for size in sizes))


class VoxelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel: of maps (N, C, ...), and the same on a patch and on a whole slice."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class PatchEncoder(nn.Module):
    """Patches to codes (..., latent_size).

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
        """The last batch norm, which gives the codes their scale."""
        return (self.join or self.branches[0])[-1]  # type: ignore[index]

    def forward(self, patches: Patches) -> torch.Tensor:
        around = patches[0].shape[: -1 - len(self.patch_shapes[0].axes)]
        latents = [
            branch(patch.flatten(0, len(around) - 1)) for branch, patch in zip(self.branches, patches, strict=True)
        ]
        return self.joined([latent.flatten(1) for latent in latents]).unflatten(0, around)

    def joined(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        """Codes (N, latent_size) of each window to one."""
        return self.join(torch.cat([*latents], dim=1))


class PatchDecoder(nn.Module):
    """Codes (..., latent_size) back to patches: each branch of the encoder in the mirror, ending in a sigmoid."""

    def __init__(self, channels: int, patch_shapes: Sequence[PatchShape], settings: EncoderSettings):
        super().__init__()
        self.branches = nn.ModuleList(_up(channels, patch_shape, settings) for patch_shape in patch_shapes)
        self.axes = [len(patch_shape.axes) for patch_shape in patch_shapes]

    def forward(self, latents: torch.Tensor) -> Patches:
        around, flat = latents.shape[:-1], latents.flatten(0, -2)
        patches = (
            branch(flat.reshape(*flat.shape, *[1] * axes))
            for branch, axes in zip(self.branches, self.axes, strict=True)
        )
        return tuple(patch.unflatten(0, around) for patch in patches)


class PatchAutoEncoder(nn.Module):
    """Encoder and decoder; calling it gives the error of the reconstruction."""

    def __init__(self, channels: int, patch_shapes: Sequence[PatchShape], settings: EncoderSettings):
        super().__init__()
        self.encoder = PatchEncoder(channels, patch_shapes, settings)
        self.decoder = PatchDecoder(channels, patch_shapes, settings)

    def forward(self, patches: Patches) -> torch.Tensor:
        return self.error(self.encoder(patches), patches)

    def error(self, latents: torch.Tensor, patches: Patches) -> torch.Tensor:
        """Mean squared error of the patches that are rebuilt from codes; every window counts the same."""
        return torch.stack([mse_loss(*pair) for pair in zip(self.decoder(latents), patches, strict=True)]).mean()

    def inner_norms(self) -> list[BatchNorm]:
        """Every batch norm but the one that scales the codes."""
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
    """A window to a code of its own."""
    plan, axes = LAYERS[patch_shape.size_vox], len(patch_shape.axes)
    layers: list[nn.Module] = []
    for step, (f_in, f_out) in zip(
        plan, pairwise([channels, *_filters(patch_shape, settings), settings.latent_size]), strict=True
    ):
        layers += [_CONVOLUTIONS[axes](f_in, f_out, step.kernel, step.stride), nn.GELU()]
        layers.append(_inner_norm(patch_shape, settings, f_out))
    # Whatever the others are, the last one is over a batch: of a window alone, it gives the codes their scale.
    return nn.Sequential(*layers[:-1], _BATCH_NORMS[axes](settings.latent_size))


def _up(channels: int, patch_shape: PatchShape, settings: EncoderSettings) -> nn.Sequential:
    """A code back to a window."""
    plan, axes = LAYERS[patch_shape.size_vox][::-1], len(patch_shape.axes)
    layers: list[nn.Module] = []
    for step, (f_in, f_out) in zip(
        plan, pairwise([settings.latent_size, *_filters(patch_shape, settings)[::-1], channels]), strict=True
    ):
        layers += [_TRANSPOSED[axes](f_in, f_out, step.kernel, step.stride), nn.GELU()]
        layers.append(_inner_norm(patch_shape, settings, f_out))
    return nn.Sequential(*layers[:-2], nn.Sigmoid())
