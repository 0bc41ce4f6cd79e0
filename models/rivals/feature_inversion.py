"""Feature inversion: the features of an encoder are reconstructed from a narrow code; the error is the score.

Zhang, Wang, Li, Tian, Xue, Liu, Pang, Tao, "Learning feature inversion for multi-class anomaly detection under
general-purpose COCO-AD benchmark" (InvAD, arXiv 2404.10760): a frozen encoder gives features F_1, ..., F_L of an image
at several resolutions. They are brought to the deepest one, fused and made narrow. A decoder starts from a learnt map
that is the same for all images; at each resolution, the fused code s says how its normalised features are scaled and
shifted at each place (spatial style modulation),

    h <- (1 + gamma(s)) norm(h) + beta(s),

and from h it reconstructs the features G_L, ..., G_1. Where an image is abnormal, that fails:

    score(x) = sum over levels of 1 - cos(F_l(x), G_l(x)), enlarged to voxels.

There: the first three stages of a Wide ResNet-50 or a ResNet-34 trained on ImageNet, images of 256 x 256, a latent of
64 channels, a squared error, and details of StyleGAN (blurred enlargement, slow learning rates of the style). Here: the
first three levels of the encoder of an auto-encoder that is trained on the healthy slices (`SpatialAutoEncoder`), or a
ResNet-34 whose weights the site supplies (`--encoder-weights`); slices are then enlarged twice, and each modality is an
image of its own. The decoder has two convolutions a level, the same latent, and none of StyleGAN's details; the loss is
that of the score, 1 - cos, averaged over places in the brain.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import nn
from torch.nn import functional

from .autoencoders import LEARNING_RATE, SpatialAutoEncoder
from .frozen_encoders import AutoEncoderFeatures, ResNetFeatures
from .presets import Preset
from .scans import Controls
from .slice_networks import SliceNetwork, enlarged
from .slices import Slices

_LATENT = 64


class _Encoder(SpatialAutoEncoder):
    """The auto-encoder whose first half is the encoder."""

    name = "feature-inversion-encoder"


class FeatureInversion(SliceNetwork):
    """Decoder of the features of a frozen encoder; the score is how far its features are from those of the slice."""

    name = "feature-inversion"
    learning_rate = LEARNING_RATE
    uses_encoder_weights = True

    def fit(self, controls: Controls) -> None:
        """Train the encoder, or load it, then the decoder."""
        if controls.encoder_weights is None:
            auto_encoder = _Encoder()
            auto_encoder.fit(replace(controls, seed=controls.seed + 1))
            self.encoder: nn.Module = AutoEncoderFeatures(auto_encoder.network)
        else:
            self.encoder = ResNetFeatures(controls.encoder_weights).to(controls.device)
        self.encoder.eval().requires_grad_(False)
        super().fit(controls)

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the decoder."""
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            found = self.encoder(torch.zeros((1, n_channels, *size), device=device))
        return InversionDecoder([features.shape[1] for features in found], found[-1].shape[2:])

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the sum over levels of the mean dissimilarity of the places in the brain."""
        total = torch.zeros((), device=batch.images.device)
        for level in self.dissimilarities(network, batch.images):
            inside = functional.adaptive_max_pool2d(batch.inside[:, 0].float(), level.shape[1:]) > 0
            total = total + (level * inside).sum() / inside.sum().clamp(min=1)
        return total

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the sum over levels of the dissimilarities."""
        size = slices.images.shape[2:]
        levels = self.dissimilarities(self.network, slices.images)
        return torch.stack([enlarged(level[:, None], size)[:, 0] for level in levels]).sum(dim=0)

    def dissimilarities(self, network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        """Dissimilarity of features and reconstructed features at each place of each level, (N, h, w)."""
        with torch.no_grad():
            found = self.encoder(images)
        pairs = zip(found, network(found), strict=True)
        return [1 - functional.cosine_similarity(one, other, dim=1) for one, other in pairs]


class InversionDecoder(nn.Module):
    """Reconstructs features from a narrow code of them.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level, from the highest resolution, each level having half the resolution of that before it.
    size : (int, int)
        Edges of the deepest level.
    """

    def __init__(self, widths: Sequence[int], size: Sequence[int]):
        super().__init__()
        deepest = len(widths) - 1
        self.fuse = nn.ModuleList(_halvings(width, deepest - level) for level, width in enumerate(widths))
        self.squeeze = nn.Sequential(
            _convolution(_LATENT * len(widths), _LATENT), Convolution(2, _LATENT, _LATENT, conv_only=True)
        )
        self.start = nn.Parameter(torch.randn(1, _LATENT, *size))
        self.levels = nn.ModuleList(
            _Level(_LATENT if level == deepest else widths[level + 1], widths[level])
            for level in range(deepest, -1, -1)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct features (N, C, h, w) of all levels."""
        style = self.squeeze(torch.cat([fuse(level) for fuse, level in zip(self.fuse, features, strict=True)], dim=1))
        hidden = self.start.expand(len(style), -1, -1, -1)
        found = []
        for level, goal in zip(self.levels, reversed(features), strict=True):
            hidden, drawn = level(enlarged(hidden, goal.shape[2:]), style)
            found.append(drawn)
        return found[::-1]


class _Level(nn.Module):
    """Two convolutions, each modulated by the style; then a linear map to the features."""

    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(Convolution(2, before, width, conv_only=True) for before in (n_in, width))
        self.styles = nn.ModuleList(Convolution(2, _LATENT, 2 * width, kernel_size=1, conv_only=True) for _ in range(2))
        self.features = Convolution(2, width, width, kernel_size=1, conv_only=True)

    def forward(self, hidden: torch.Tensor, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden maps and features."""
        for convolution, to_style in zip(self.convolutions, self.styles, strict=True):
            hidden = convolution(hidden)
            gamma, beta = enlarged(to_style(style), hidden.shape[2:]).chunk(2, dim=1)
            hidden = functional.leaky_relu((1 + gamma) * functional.instance_norm(hidden) + beta, 0.2)
        return hidden, self.features(hidden)


def _halvings(width: int, number: int) -> nn.Module:
    """Reduce the resolution by halving it so often, then the channels to those of the latent."""
    return nn.Sequential(*(_convolution(width, width, strides=2) for _ in range(number)), _convolution(width, _LATENT))


def _convolution(before: int, after: int, strides: int = 1) -> Convolution:
    return Convolution(2, before, after, strides=strides, norm="INSTANCE", act="LEAKYRELU", adn_ordering="NA")
