"""Auto-encoders that reconstruct healthy slices; the residual is the score.

Baur, Denner, Wiestler, Navab, Albarqouni, "Autoencoders for unsupervised anomaly segmentation in brain MR images: a
comparative study" (MedIA 2021): a network g(f(x)) learns to reproduce healthy slices through a narrow code, and

    score(x) = |x - g(f(x))|.

There: 128 x 128 pixels, batches of 8, Adam at 1e-4, a latent of 128 or 8 x 8 x 16, L1 loss. Here: the slices of the
run's own resolution, MONAI's networks, and widths and steps of the preset; batches of the preset, and Adam at 1e-3,
since the schedules are shorter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.autoencoder import AutoEncoder
from monai.networks.nets.unet import UNet
from monai.networks.nets.varautoencoder import VarAutoEncoder
from torch import nn

from .presets import Preset
from .slice_networks import STRIDES, SliceNetwork, kl_divergence, mean_inside, normal_like, residual
from .slices import Slices

LEARNING_RATE = 1e-3
_NORM = "BATCH"
_LARGEST_LOGVAR = 10.0


class _Reconstruction(SliceNetwork):
    """Auto-encoder without noise: L1 loss, absolute residual."""

    learning_rate = LEARNING_RATE

    def reconstruct(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct slices (N, M, H, W)."""
        return network(images)

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the loss."""
        return mean_inside((self.reconstruct(network, batch.images) - batch.images).abs(), batch.inside)

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        return residual(slices.images, self.reconstruct(self.network, slices.images))


class SpatialAutoEncoder(_Reconstruction):
    """Fully convolutional; the code is a feature map at a sixteenth of the resolution."""

    name = "ae-spatial"

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return AutoEncoder(2, n_channels, n_channels, preset.widths, STRIDES, norm=_NORM)


class SkipAutoEncoder(_Reconstruction):
    """With skip connections, through which a network can copy its input: it should find nothing."""

    name = "ae-skips"

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return UNet(2, n_channels, n_channels, (*preset.widths, preset.widths[-1]), STRIDES, norm=_NORM)


class DenseAutoEncoder(_Reconstruction):
    """The code is a vector: the mean of a variational auto-encoder, without its noise and its prior."""

    name = "ae-dense"

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return dense_vae(n_channels, size, preset)

    def reconstruct(self, network: Any, images: torch.Tensor) -> torch.Tensor:
        """Decode the mean of the code."""
        return network.decode_forward(network.encode_forward(images)[0], use_sigmoid=False)


def dense_vae(n_channels: int, size: tuple[int, int], preset: Preset) -> VarAutoEncoder:
    """Variational auto-encoder with a vector as its code."""
    shape = n_channels, *size
    return VarAutoEncoder(2, shape, n_channels, preset.latent_size, preset.widths, STRIDES, norm=_NORM)


class DenseVae(SliceNetwork):
    """Variational auto-encoder with a vector as its code.

    The loss is minus the evidence lower bound with a Laplace likelihood, divided by the number of voxels:
    (sum |x - g(z)| / b + KL(q(z|x) || N(0, 1))) / n, where z = mu + sigma eps and b is the scale of the likelihood. The
    residual is that of the mean of the code.
    """

    name = "vae-dense"
    learning_rate = LEARNING_RATE
    scale = 0.05
    """b: with the 1 of a plain sum of intensities in [0, 1], the prior empties the code."""

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return dense_vae(n_channels, size, preset)

    def encode(self, network: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of the code."""
        mu, logvar = network.encode_forward(images)
        return mu, logvar.clamp(-_LARGEST_LOGVAR, _LARGEST_LOGVAR)

    def decode(self, network: Any, code: torch.Tensor) -> torch.Tensor:
        """Return slices (N, M, H, W)."""
        return network.decode_forward(code, use_sigmoid=False)

    def negative_elbo(self, network: nn.Module, batch: Slices, generator: torch.Generator | None) -> torch.Tensor:
        """Return the loss; without a generator, that of the mean of the code."""
        mu, logvar = self.encode(network, batch.images)
        code = mu if generator is None else mu + (0.5 * logvar).exp() * normal_like(mu, generator)
        error = mean_inside((self.decode(network, code) - batch.images).abs(), batch.inside)
        n_voxels = batch.inside.sum().clamp(min=1) * batch.images.shape[1] / len(mu)
        return error / self.scale + kl_divergence(mu, logvar) / n_voxels

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the loss."""
        return self.negative_elbo(network, batch, generator)

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        return residual(slices.images, self.decode(self.network, self.encode(self.network, slices.images)[0]))


class _SpatialVaeNetwork(AutoEncoder):
    """Convolutional auto-encoder whose code is normal at each place.

    Parameters
    ----------
    n_channels : int
    widths : sequence of int
    latents : int
        Channels of the code.
    """

    def __init__(self, n_channels: int, widths: Sequence[int], latents: int):
        super().__init__(2, n_channels, n_channels, widths, STRIDES, norm=_NORM)
        self.mu, self.logvar = (
            Convolution(2, widths[-1], latents, kernel_size=1, conv_only=True) for _ in ("mean", "log-variance")
        )
        self.expand = Convolution(2, latents, widths[-1], kernel_size=1, conv_only=True)


class SpatialVae(DenseVae):
    """The same with a feature map as its code, at a sixteenth of the resolution."""

    name = "vae-spatial"

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        return _SpatialVaeNetwork(n_channels, preset.widths, preset.spatial_latents)

    def encode(self, network: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of the code."""
        features = network.encode(images)
        return network.mu(features), network.logvar(features).clamp(-_LARGEST_LOGVAR, _LARGEST_LOGVAR)

    def decode(self, network: Any, code: torch.Tensor) -> torch.Tensor:
        """Return slices (N, M, H, W)."""
        return network.decode(network.expand(code))
