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
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.autoencoder import AutoEncoder
from monai.networks.nets.resnet import ResNet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ...data_manifests.errors import UserError, private
from ..tensor_file import read_header
from .autoencoders import LEARNING_RATE, SpatialAutoEncoder
from .presets import Preset
from .scans import Controls
from .slice_networks import SliceNetwork
from .slices import Slices

_LEVELS = 3
_LATENT = 64
_IMAGENET_MEAN, _IMAGENET_SD = 0.449, 0.226
"""Of grey images."""


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


class AutoEncoderFeatures(nn.Module):
    """Features of an auto-encoder at a half, a quarter and an eighth of the resolution."""

    def __init__(self, network: Any):
        super().__init__()
        encode: AutoEncoder = network
        self.levels = nn.ModuleList([*encode.encode.children()][:_LEVELS])  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Encode slices (N, M, H, W) to `_LEVELS` maps (N, C, h, w)."""
        found = []
        for level in self.levels:
            images = level(images)
            found.append(images)
        return found


class ResNetFeatures(nn.Module):
    """Features of a ResNet-34 for colour images, at a half, a quarter and an eighth of the resolution of a slice.

    Parameters
    ----------
    weights : Path
        Safetensors file with torchvision's names.

    Raises
    ------
    UserError
        The file is missing, damaged, or of another network.
    """

    def __init__(self, weights: Path):
        super().__init__()
        self.network = self.empty()
        self.network.load_state_dict(_weights_of(weights, self.network))

    @staticmethod
    def empty() -> ResNet:
        """Return the network with random weights."""
        return ResNet(
            "basic",
            [3, 4, 6, 3],
            [64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Encode each modality of slices (N, M, H, W) by itself, to maps (N, M C, h, w)."""
        n, channels, height, width = images.shape
        grey = (images.reshape(n * channels, 1, height, width) - _IMAGENET_MEAN) / _IMAGENET_SD
        net = self.network
        features = enlarged(grey, (2 * height, 2 * width)).expand(-1, 3, -1, -1)
        features = net.maxpool(net.act(net.bn1(net.conv1(features))))
        found = []
        for layer in (net.layer1, net.layer2, net.layer3):
            features = layer(features)
            found.append(features.reshape(n, -1, *features.shape[2:]))
        return found


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
        self.fuse = nn.ModuleList(
            nn.Sequential(*(_convolution(width, _LATENT if last else width, strides=2 - last)
                            for last in [False] * (deepest - level) + [True]))
            for level, width in enumerate(widths)
        )  # fmt: skip
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


def enlarged(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate maps (N, C, h, w) bilinearly to another size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def require_weights(path: Path) -> None:
    """Check that the file with the weights of the encoder is there.

    Raises
    ------
    UserError
    """
    if not path.is_file():
        raise UserError(
            f"--encoder-weights: found no file {private(path)}, expected the weights of a ResNet-34 there "
            "(safetensors, docs/rivals.md). Put them there, or leave the option out, to train the encoder on the "
            "controls."
        )


def _weights_of(path: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """Read the weights of a network, and check their names and shapes."""
    require_weights(path)
    try:
        read_header(path)  # validates the file before the library maps it
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"--encoder-weights: {private(path)} cannot be read ({error}), expected a safetensors file. Write it as "
            "docs/rivals.md says."
        ) from error
    for name, wanted in network.state_dict().items():
        found = tuple(tensors[name].shape) if name in tensors else "none"
        if found != tuple(wanted.shape):
            raise UserError(
                f"--encoder-weights: {private(path)} has {name} of shape {found}, expected {tuple(wanted.shape)}. "
                "Supply a ResNet-34 with torchvision's names."
            )
    return {name: tensors[name] for name in network.state_dict()}


def _convolution(before: int, after: int, strides: int = 1) -> Convolution:
    return Convolution(2, before, after, strides=strides, norm="INSTANCE", act="LEAKYRELU", adn_ordering="NA")
