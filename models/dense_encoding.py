"""Codes of all locations of a subject, as fast as one pass over its slices.

In eval mode a patch encoder over a whole slice is exact when every stride becomes a dilation of the layers after it:
what a patch meets on its way to 1x1 is then met around every pixel, and nothing twice.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..preprocessing.patch_grid import PatchGrid
from .encoder import PatchEncoder

_CELLS_AT_ONCE = 8_000_000
"""Activations of the widest layer held at a time; 32 MB."""


@torch.inference_mode()
def encode_densely(
    encoder: PatchEncoder, volume: torch.Tensor, grid: PatchGrid, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Encode one subject at every location.

    Parameters
    ----------
    encoder : PatchEncoder
        Is put into eval mode and onto `device`.
    volume : tensor, (C, X, Y, Z)
    grid : PatchGrid
    device : str or torch.device

    Returns
    -------
    tensor, (P, code_size), float32, on the CPU
        What the encoder makes of the patch around each location, to rounding. Beyond the grid, patches see zeros.
    """
    if tuple(volume.shape) != (encoder.channels, *grid.grid.size_vox):
        raise ValueError(f"volume {tuple(volume.shape)}, expected {(encoder.channels, *grid.grid.size_vox)}")
    encoder = encoder.to(device).eval()
    x, y, z = grid.locations.T.astype(np.int64)
    half = encoder.patch_size_vox // 2
    # After this padding, the patch of pixel (x, y) starts at (x, y): only the brain's bounding box is run through.
    low_x, low_y, high_x, high_y = x.min(), y.min(), x.max() + 2 * half + 1, y.max() + 2 * half + 1
    slices = np.unique(z)
    widest = max(layer.out_channels for layer in encoder.layers if isinstance(layer, nn.Conv2d))
    at_once = max(1, _CELLS_AT_ONCE // int(widest * (high_x - low_x) * (high_y - low_y)))
    codes = torch.empty(grid.size, encoder.code_size)
    for start in range(0, len(slices), at_once):
        chosen = slices[start : start + at_once]
        planes = volume[..., torch.from_numpy(chosen)].permute(3, 0, 1, 2).to(device, torch.float32)
        planes = F.pad(planes, (half, half, half, half))[:, :, low_x:high_x, low_y:high_y]
        dense = _run_dilated(encoder, planes)
        here = np.flatnonzero((z >= chosen[0]) & (z <= chosen[-1]))
        index = (np.searchsorted(chosen, z[here]), x[here] - low_x, y[here] - low_y)
        plane, row, column = (torch.from_numpy(part).to(device) for part in index)
        codes[torch.from_numpy(here)] = dense[plane, :, row, column].cpu()
    return codes


def _run_dilated(encoder: PatchEncoder, planes: torch.Tensor) -> torch.Tensor:
    """Planes (N, C, X + p - 1, Y + p - 1) to codes (N, code_size, X, Y)."""
    dilation = 1
    for layer in encoder.layers:
        if isinstance(layer, nn.Conv2d):
            planes = F.conv2d(planes, layer.weight, layer.bias, dilation=dilation)
            dilation *= layer.stride[0]
        else:
            planes = layer(planes)
    return planes
