"""Masked auto-encoder with Monte-Carlo uncertainty.

Zhang et al., "U2AD: uncertainty-based unsupervised anomaly detection framework" (MedIA 2026, arXiv 2503.13400), on
the masked auto-encoder of He et al. (CVPR 2022): a transformer sees a quarter of the squares of a slice and completes
the others. With some ten random masks k, each voxel is completed several times, by x_k, from different surroundings:

    loss = mean over hidden voxels of (x_k - x)^2,      score(x) = mean_k |x_k - x| + sd_k(x_k),

the means over the masks that hide the voxel.

There: squares of 8 pixels in slices of 256 x 256, a vision transformer, and after training on healthy scans a second
stage on the patients, with masks that uncertainty guides. Here: MONAI's masked auto-encoder with hidden size and
layers of the preset, squares of 8 voxels, no second stage, since no patient is learnt from; sum of error and
uncertainty.
"""

from typing import Any

import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch import nn

from .autoencoders import LEARNING_RATE
from .presets import Preset
from .slice_networks import SliceNetwork
from .slices import Slices

_SQUARE_VOX, _MASKED, _HEADS = 8, 0.75, 6
_SEED_OF_MASKS = 0


class MaskedAutoEncoder(SliceNetwork):
    """Transformer that completes hidden squares; the score is error and spread of what it completes."""

    name = "masked-ae"
    learning_rate = LEARNING_RATE

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        hidden, layers = preset.transformer
        return MaskedAutoEncoderViT(
            n_channels,
            size,
            _SQUARE_VOX,
            hidden_size=hidden,
            mlp_dim=2 * hidden,
            num_layers=layers,
            num_heads=_HEADS,
            masking_ratio=_MASKED,
            decoder_hidden_size=hidden // 2,
            decoder_mlp_dim=hidden,
            decoder_num_layers=max(layers // 2, 1),
            decoder_num_heads=_HEADS,
            spatial_dims=2,
        )

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the mean squared error of the hidden voxels in the brain."""
        completed, hidden = completed_slices(network, batch.images, generator)
        used = hidden & batch.inside
        return ((completed - batch.images).square() * used).sum() / (used.sum() * batch.images.shape[1]).clamp(min=1)

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return mean error plus standard deviation over random masks."""
        generator = torch.Generator().manual_seed(_SEED_OF_MASKS)
        images = slices.images
        count = torch.zeros_like(images[:, :1])
        error, total, squares = (torch.zeros_like(images) for _ in range(3))
        for _ in range(self.preset.masked_passes):
            completed, hidden = completed_slices(self.network, images, generator)
            count += hidden
            error += (completed - images).abs() * hidden
            total += completed * hidden
            squares += completed.square() * hidden
        count = count.clamp(min=1)
        spread = (squares / count - (total / count).square()).clamp(min=0).sqrt()
        return (error / count + spread).mean(dim=1)


def completed_slices(
    network: Any, images: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide squares of slices (N, M, H, W) at random, and complete them.

    Returns
    -------
    Tensor, (N, M, H, W)
        What the network draws.
    Tensor of bool, (N, 1, H, W)
        What was hidden.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    # The masks of MONAI's network come from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn, hidden = network(images)
    n, channels, height, width = images.shape
    rows, columns = height // _SQUARE_VOX, width // _SQUARE_VOX
    squares = drawn.reshape(n, rows, columns, channels, _SQUARE_VOX, _SQUARE_VOX)
    completed = squares.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    hidden = hidden.reshape(n, 1, rows, columns).bool()
    return completed, hidden.repeat_interleave(_SQUARE_VOX, 2).repeat_interleave(_SQUARE_VOX, 3)
