"""Codes of all locations of a subject, as fast as one pass over its slices a window.

In eval mode a patch encoder over a whole slice is exact when every stride becomes a dilation of the layers after it:
what a patch meets on its way to 1x1 is then met around every pixel, and nothing twice.
"""

from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...preprocessing.patches.voxel_mask import VoxelMask
from .network import PatchEncoder
from .patch_shape import PatchShape

_CELLS_AT_ONCE = 8_000_000
"""Activations of the widest layer held at a time; 32 MB. Around a cube come the slices on both sides."""
_LOCATIONS_AT_ONCE = 100_000


@torch.inference_mode()
def encode_densely(
    encoder: PatchEncoder, volume: torch.Tensor, grid: VoxelMask, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Encode one subject at every location.

    Parameters
    ----------
    encoder : PatchEncoder
        Is put into eval mode and onto `device`.
    volume : tensor, (C, X, Y, Z)
    grid : VoxelMask
    device : str or torch.device

    Returns
    -------
    tensor, (P, latent_size), float32, on the CPU
        What the encoder makes of the patch around each location, to rounding. Beyond the grid, patches see zeros.
    """
    if tuple(volume.shape) != (encoder.channels, *grid.grid.size_vox):
        raise ValueError(f"volume {tuple(volume.shape)}, expected {(encoder.channels, *grid.grid.size_vox)}")
    encoder = encoder.to(device).eval()
    latents = torch.empty(grid.size, encoder.latent_size)
    features = [
        _at_locations(cast(nn.Sequential, branch), patch_shape, volume, grid, torch.empty_like(latents))
        for branch, patch_shape in zip(encoder.branches, encoder.patch_shapes, strict=True)
    ]
    for a in range(0, grid.size, _LOCATIONS_AT_ONCE):
        here = slice(a, a + _LOCATIONS_AT_ONCE)
        latents[here] = encoder.joined([feature[here].to(device) for feature in features]).cpu()
    return latents


def _at_locations(
    branch: nn.Sequential, patch_shape: PatchShape, volume: torch.Tensor, grid: VoxelMask, latents: torch.Tensor
) -> torch.Tensor:
    """Fill `latents`, (P, latent_size), with what one branch makes of its window around every location.

    The window's axes come first and the rest last, along which slices are taken: one by one where the window lies in
    a plane, or with their neighbours on both sides.
    """
    order = [*patch_shape.axes, *(axis for axis in range(3) if axis not in patch_shape.axes)]
    volume = volume.permute(0, *(1 + axis for axis in order))
    x, y, z = grid.locations[:, order].T.astype(np.int64)
    device, half, in_depth = (
        next(branch.parameters()).device,
        patch_shape.half,
        patch_shape.half if len(patch_shape.axes) == 3 else 0,
    )
    # After this padding, the patch of voxel (x, y) starts at (x, y): only the brain's bounding box is run through.
    low_x, low_y, high_x, high_y = x.min(), y.min(), x.max() + 2 * half + 1, y.max() + 2 * half + 1
    slices = np.arange(z.min(), z.max() + 1) if in_depth else np.unique(z)
    widest = max(layer.out_channels for layer in branch if isinstance(layer, (nn.Conv2d, nn.Conv3d)))
    # A cube's slices at the sides are run through again with the next block: few blocks, then, and not thin ones.
    at_once = max(1 + 4 * in_depth, _CELLS_AT_ONCE // int(widest * (high_x - low_x) * (high_y - low_y)))
    for start in range(0, len(slices), at_once):
        chosen = slices[start : start + at_once]
        around = np.arange(chosen[0] - in_depth, chosen[-1] + in_depth + 1) if in_depth else chosen
        there = (around >= 0) & (around < volume.shape[-1])
        block = volume[..., torch.from_numpy(around[there])].to(device, torch.float32)
        block = F.pad(block, (int(np.argmax(there)), int(np.argmax(there[::-1])), half, half, half, half))
        block = block[:, low_x:high_x, low_y:high_y]
        dense = _run_dilated(branch, block[None] if in_depth else block.permute(3, 0, 1, 2))
        dense = dense[0].permute(3, 0, 1, 2) if in_depth else dense
        here = np.flatnonzero((z >= chosen[0]) & (z <= chosen[-1]))
        index = (np.searchsorted(chosen, z[here]), x[here] - low_x, y[here] - low_y)
        plane, row, column = (torch.from_numpy(part).to(device) for part in index)
        latents[torch.from_numpy(here)] = dense[plane, :, row, column].cpu()
    return latents


def _run_dilated(branch: nn.Sequential, block: torch.Tensor) -> torch.Tensor:
    """Blocks (N, C, X + p - 1, Y + p - 1[, Z + p - 1]) to codes (N, latent_size, X, Y[, Z])."""
    dilation = 1
    for layer in branch:
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv3d
            block = convolve(block, layer.weight, layer.bias, dilation=dilation)
            dilation *= layer.stride[0]
        else:
            block = layer(block)
    return block
