"""Dense inference: latents of all voxels of a subject, in one pass over its slices per patch shape.

In eval mode, a patch encoder can be applied to a whole slice exactly if every stride is replaced by a dilation of the
layers after it (as in fully convolutional networks). Nothing is computed twice.
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
"""Activations of the widest layer per block (32 MB), without the neighbouring slices that cubes need."""
_VOXELS_AT_ONCE = 100_000


@torch.inference_mode()
def encode_densely(
    encoder: PatchEncoder, volume: torch.Tensor, mask: VoxelMask, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Compute the latents of one subject at every voxel of the mask.

    Parameters
    ----------
    encoder : PatchEncoder
        Set to eval mode and moved to `device`.
    volume : tensor, (C, X, Y, Z)
    mask : VoxelMask
    device : str or torch.device

    Returns
    -------
    tensor, (P, latent_size), float32, on the CPU
        Equal to the latents of the patch around each voxel, up to rounding. Patches are zero-padded beyond the grid.
    """
    if tuple(volume.shape) != (encoder.channels, *mask.grid.size_vox):
        raise ValueError(f"volume {tuple(volume.shape)}, expected {(encoder.channels, *mask.grid.size_vox)}")
    encoder = encoder.to(device).eval()
    latents = torch.empty(mask.size, encoder.latent_size)
    features = [
        _at_voxels(cast(nn.Sequential, branch), patch_shape, volume, mask, torch.empty_like(latents))
        for branch, patch_shape in zip(encoder.branches, encoder.patch_shapes, strict=True)
    ]
    for a in range(0, mask.size, _VOXELS_AT_ONCE):
        here = slice(a, a + _VOXELS_AT_ONCE)
        latents[here] = encoder.joined([feature[here].to(device) for feature in features]).cpu()
    return latents


def _at_voxels(
    branch: nn.Sequential, patch_shape: PatchShape, volume: torch.Tensor, mask: VoxelMask, latents: torch.Tensor
) -> torch.Tensor:
    """Fill `latents`, (P, latent_size), with the output of one branch for the patch around every voxel.

    The axes of the patch come first. Slices are taken along the last axis: single slices for planar patches, slices
    with their neighbours on both sides for cubes.
    """
    order = [*patch_shape.axes, *(axis for axis in range(3) if axis not in patch_shape.axes)]
    volume = volume.permute(0, *(1 + axis for axis in order))
    x, y, z = mask.locations[:, order].T.astype(np.int64)
    device, half, in_depth = (
        next(branch.parameters()).device,
        patch_shape.half,
        patch_shape.half if len(patch_shape.axes) == 3 else 0,
    )
    # After padding, the patch of voxel (x, y) starts at (x, y). Only the bounding box of the mask is processed.
    low_x, low_y, high_x, high_y = x.min(), y.min(), x.max() + 2 * half + 1, y.max() + 2 * half + 1
    slices = np.arange(z.min(), z.max() + 1) if in_depth else np.unique(z)
    widest = max(layer.out_channels for layer in branch if isinstance(layer, (nn.Conv2d, nn.Conv3d)))
    # Neighbouring slices of cubes are processed again in the next block, so blocks should not be thin.
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
    """Blocks (N, C, X + p - 1, Y + p - 1[, Z + p - 1]) to latents (N, latent_size, X, Y[, Z])."""
    dilation = 1
    for layer in branch:
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv3d
            block = convolve(block, layer.weight, layer.bias, dilation=dilation)
            dilation *= layer.stride[0]
        else:
            block = layer(block)
    return block
