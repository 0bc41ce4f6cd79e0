"""The patch auto-encoder: a patch becomes a short code that stands for its central voxel.

Every convolution runs without padding until 1x1 is left, so a code depends on its own patch alone, and the same
weights can be run densely over whole slices (`dense_encoding`). Each convolution is followed by GELU, then by batch
norm (Pinon, Trombetta, Lartizien, arXiv 2507.21164, section 4).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..data_manifests.errors import UserError


@dataclass(frozen=True)
class Step:
    """One square convolution of a plan: edge length and stride, in pixels."""

    kernel: int
    stride: int = 1


PLANS: dict[int, tuple[Step, ...]] = {
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


def plan_of(patch_size_vox: int, spacing_mm: float) -> tuple[Step, ...]:
    """The convolutions for a patch size.

    Raises
    ------
    UserError
        There is no plan for it; the sentence lists the sizes in mm that have one at this spacing.
    """
    if patch_size_vox not in PLANS:
        valid = ", ".join(f"{size * spacing_mm:g}" for size in PLANS)
        raise UserError(
            f"models.encoder.patch_size_mm: comes to {patch_size_vox} voxels of {spacing_mm:g} mm, for which there is "
            f"no network. At this spacing choose one of {valid} mm."
        )
    return PLANS[patch_size_vox]


class PatchEncoder(nn.Module):
    """Patches (N, C, p, p) to codes (N, code_size).

    Parameters
    ----------
    channels : int
    patch_size_vox : int
        A key of `PLANS`.
    code_size : int
    width : {"paper", "wide"}
    """

    def __init__(self, channels: int, patch_size_vox: int, code_size: int, width: Literal["paper", "wide"]):
        super().__init__()
        self.channels, self.patch_size_vox, self.code_size, self.width = channels, patch_size_vox, code_size, width
        self.plan = PLANS[patch_size_vox]
        filters = [channels, *HIDDEN_FILTERS[width][-(len(self.plan) - 1) :], code_size]
        layers: list[nn.Module] = []
        for step, f_in, f_out in zip(self.plan, filters[:-1], filters[1:], strict=True):
            layers += [nn.Conv2d(f_in, f_out, step.kernel, step.stride), nn.GELU(), nn.BatchNorm2d(f_out)]
        self.layers = nn.Sequential(*layers)

    @property
    def code_norm(self) -> nn.BatchNorm2d:
        """The last batch norm, which gives the codes their scale."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.layers(patches).flatten(1)


class PatchDecoder(nn.Module):
    """Codes (N, code_size) back to patches (N, C, p, p): the encoder's mirror image, ending in a sigmoid."""

    def __init__(self, channels: int, patch_size_vox: int, code_size: int, width: Literal["paper", "wide"]):
        super().__init__()
        plan = PLANS[patch_size_vox][::-1]
        filters = [code_size, *HIDDEN_FILTERS[width][-(len(plan) - 1) :][::-1], channels]
        layers: list[nn.Module] = []
        for number, (step, f_in, f_out) in enumerate(zip(plan, filters[:-1], filters[1:], strict=True), start=1):
            layers.append(nn.ConvTranspose2d(f_in, f_out, step.kernel, step.stride))
            layers += [nn.GELU(), nn.BatchNorm2d(f_out)] if number < len(plan) else [nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.layers(codes[:, :, None, None])


class PatchAutoEncoder(nn.Module):
    """Encoder and decoder; calling it reconstructs patches."""

    def __init__(self, channels: int, patch_size_vox: int, code_size: int, width: Literal["paper", "wide"]):
        super().__init__()
        self.encoder = PatchEncoder(channels, patch_size_vox, code_size, width)
        self.decoder = PatchDecoder(channels, patch_size_vox, code_size, width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(patches))

    def inner_norms(self) -> list[nn.BatchNorm2d]:
        """Every batch norm but the one that scales the codes."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        return [norm for norm in norms if norm is not self.encoder.code_norm]
