"""Patched diffusion model.

Behrendt, Bhattacharya, Krueger, Opfer, Schlaefer, "Patched diffusion models for unsupervised anomaly detection in brain
MRI" (MIDL 2023): a network h learns to complete one patch of a slice x that is drowned in noise e, from what is left of
it and from the rest of the slice, which stays as it is,

    y = sqrt(a_t) x + sqrt(1 - a_t) e in the patch, x elsewhere,      loss = mean over the patch of |h(y, t) - x|,

t a random step of 1,000. A scan is judged by h(y, t) of one fixed t in each patch of a grid in turn, put together to a
reconstruction r:

    score(x) = |x - r|.

There: slices of 96 x 96 pixels of 2 mm, patches of 48 x 48 on a grid, simplex noise, t = 500, a U-Net of 128 to 256
channels, 1,600 epochs, h trained to return x itself. Here: MONAI's diffusion network and scheduler, with widths and
steps of the preset and attention at the deepest resolution; patches of half a slice's edges; instead of simplex noise,
normal noise on grids of 1 to 32 voxels, enlarged and added up with the weights of simplex octaves, of standard
deviation 1; the loss counts voxels of the brain alone.
"""

from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import nn
from torch.nn import functional

from .autoencoders import LEARNING_RATE
from .presets import Preset
from .slice_networks import SliceNetwork, mean_inside, residual
from .slices import Slices

_TIMES, _TIME_OF_SCORES = 1000, 500
_PARTS = 2
"""Patches along each edge of a slice."""
_OCTAVES, _PERSISTENCE = 6, 0.8
_GROUPS = 8
_SEED_OF_NOISE = 0


class PatchedDiffusion(SliceNetwork):
    """Diffusion network that completes a patch drowned in noise; the score is the residual of all patches."""

    name = "patched-diffusion"
    learning_rate = LEARNING_RATE

    def __init__(self) -> None:
        self.scheduler = DDPMScheduler(_TIMES, prediction_type="sample")

    def steps(self, preset: Preset) -> int:
        """Return the number of training steps."""
        return preset.long_steps

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        widths = preset.diffusion_widths
        return DiffusionModelUNet(
            2,
            n_channels,
            n_channels,
            num_res_blocks=1,
            channels=widths,
            attention_levels=[width == len(widths) - 1 for width in range(len(widths))],
            norm_num_groups=_GROUPS,
            num_head_channels=_GROUPS,
            use_flash_attention=True,
        )

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the mean absolute error of a random patch of each slice, in the brain."""
        images = batch.images
        n, device = len(images), images.device
        patches = grid_of_patches(images.shape[2:], device)
        patch = patches[torch.randint(len(patches), (n,), generator=generator, device=device)]
        times = torch.randint(_TIMES, (n,), generator=generator, device=device)
        noise = octave_noise(images.shape, generator, device)
        return mean_inside((self.completed(network, images, noise, patch, times) - images).abs(), batch.inside & patch)

    def completed(
        self, network: Any, images: torch.Tensor, noise: torch.Tensor, patch: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Drown a patch of slices (N, M, H, W) in noise, and reconstruct them.

        Parameters
        ----------
        network : Module
        images, noise : Tensor, (N, M, H, W)
        patch : Tensor of bool, (N, 1, H, W)
        times : Tensor of int, (N,)
        """
        scaled = 2 * images - 1
        noisy = torch.where(patch, self.scheduler.add_noise(scaled, noise, times), scaled)
        return (network(noisy, times) + 1) / 2

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the residual of the patches."""
        images = slices.images
        # The same noise for each slice of each scan: scores of neighbours, and of people, can be compared.
        generator = torch.Generator().manual_seed(_SEED_OF_NOISE)
        noise = octave_noise(torch.Size((1, *images.shape[1:])), generator, "cpu").to(images.device)
        times = torch.full((len(images),), _TIME_OF_SCORES, device=images.device)
        reconstruction = torch.zeros_like(images)
        for patch in grid_of_patches(images.shape[2:], images.device):
            patch = patch.expand(len(images), -1, -1, -1)
            found = self.completed(self.network, images, noise.expand_as(images), patch, times)
            reconstruction = torch.where(patch, found, reconstruction)
        return residual(images, reconstruction)


def grid_of_patches(size: torch.Size, device: torch.device | str) -> torch.Tensor:
    """Masks of the patches of a slice, (_PARTS^2, 1, H, W) bool; each voxel is in one of them."""
    rows, columns = (torch.arange(edge, device=device) * _PARTS // edge for edge in size)
    of_voxel = rows[:, None] * _PARTS + columns
    return (of_voxel == torch.arange(_PARTS**2, device=device)[:, None, None])[:, None]


def octave_noise(shape: torch.Size, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
    """Draw noise of several scales for slices (N, M, H, W): mean 0, standard deviation 1 on average.

    Normal noise on grids of 1, 2, 4, ... voxels is enlarged bilinearly; each is weaker than the next coarser one.
    """
    n, channels, height, width = shape
    total = torch.zeros(shape, device=device)
    variance = 0.0
    for octave in range(_OCTAVES):
        vox, weight = 2**octave, _PERSISTENCE ** (_OCTAVES - 1 - octave)
        points = height // vox + 3, width // vox + 3
        noise = torch.randn((n, channels, *points), generator=generator, device=device)
        if vox > 1:
            noise = functional.interpolate(noise, scale_factor=vox, mode="bilinear", align_corners=False)
        # From the first point on: before it, there is nothing to interpolate.
        top, left = (vox // 2 + torch.randint(vox, (2,), generator=generator, device=device)).tolist()
        total += weight * noise[:, :, top : top + height, left : left + width]
        # Mean over the places between two points of the sum of squares of the weights of both, in each direction.
        between = (torch.arange(vox) + 0.5) / vox
        variance += weight**2 * (between**2 + (1 - between) ** 2).mean().item() ** 2 if vox > 1 else weight**2
    return total / variance**0.5
