"""Encoders of slices that are not trained further: features at a half, a quarter and an eighth of the resolution.

One is the first half of an auto-encoder, the other a ResNet-34 with weights from a file, such as those that torchvision
trained on ImageNet. Nothing is fetched, and the file can hold no code.
"""

from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ...data_manifests.errors import UserError, private
from ..tensor_file import read_header
from .slice_networks import enlarged

_LEVELS = 3
_IMAGENET_MEAN, _IMAGENET_SD = 0.449, 0.226
"""Of grey images."""


class AutoEncoderFeatures(nn.Module):
    """Features of an auto-encoder at a half, a quarter and an eighth of the resolution."""

    def __init__(self, network: Any):
        super().__init__()
        self.levels = nn.ModuleList([*network.encode.children()][:_LEVELS])

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
