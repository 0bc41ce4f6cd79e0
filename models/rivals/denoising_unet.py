"""Denoising auto-encoder with skip connections and coarse noise.

Kascenas, Pugeault, O'Neil, "Denoising autoencoders for unsupervised anomaly detection in brain MRI" (MIDL 2022): a
U-Net h learns to take noise off healthy slices. The noise e is normal with standard deviation 0.2, drawn on a grid of
16 x 16 points for a slice of 128 x 128 pixels and enlarged, so that it covers tissue in blobs:

    loss = mean over the brain of (h(x + e) - x)^2,        score(x) = median filter of |x - h(x)|, mean over modalities.

There: widths from 64, 67,200 steps, a median filter of 5 voxels a side. Here: MONAI's U-Net with the widths and steps
of the preset, a noise point for each 8 x 8 voxels with a random offset, and a median filter of 3 voxels a side, since
lesions of 0.1 ml would not pass one of 5 voxels at 2 mm.
"""

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from scipy import ndimage
from torch import nn
from torch.nn import functional

from .autoencoders import LEARNING_RATE
from .presets import Preset
from .scans import Scan
from .slice_networks import STRIDES, SliceNetwork, mean_inside, residual
from .slices import Slices

_SD, _POINT_VOX, _MEDIAN_VOX = 0.2, 8, 3


class DenoisingUNet(SliceNetwork):
    """U-Net that takes coarse noise off slices; the score is what it takes off a scan."""

    name = "denoising-unet"
    learning_rate = LEARNING_RATE

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return UNet(2, n_channels, n_channels, (*preset.widths, preset.widths[-1]), STRIDES, norm="BATCH")

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the loss."""
        noise = coarse_noise(batch.images.shape, generator, batch.images.device)
        return mean_inside((network(batch.images + noise * batch.inside) - batch.images).square(), batch.inside)

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        return residual(slices.images, self.network(slices.images))

    def finished(self, volume: np.ndarray, subject: Scan) -> np.ndarray:
        """Filter the map."""
        return ndimage.median_filter(np.where(subject.inside, volume, 0), _MEDIAN_VOX)


def coarse_noise(shape: torch.Size, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
    """Draw noise on a coarse grid and enlarge it bilinearly to slices (N, M, H, W), each batch at a random offset."""
    n, channels, height, width = shape
    points = height // _POINT_VOX + 2, width // _POINT_VOX + 2
    noise = _SD * torch.randn((n, channels, *points), generator=generator, device=device)
    noise = functional.interpolate(noise, scale_factor=_POINT_VOX, mode="bilinear", align_corners=False)
    top, left = torch.randint(_POINT_VOX, (2,), generator=generator, device=device).tolist()
    return noise[:, :, top : top + height, left : left + width]
