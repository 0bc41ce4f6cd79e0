"""Small network shared by all methods, so that they differ only in their training objective.

Convolutions 4@5x5 and 8@5x5, each with batch norm, leaky ReLU and 2x2 max pooling, then a linear layer to 32 latents.
The decoder is the mirror image, with transposed convolutions of stride 2 instead of pooling. Layers have no bias and
batch norms no affine parameters, because a bias could map all images to the same latent, which minimises a one-class
loss (Ruff et al., Deep one-class classification, ICML 2018). The channels-last memory format is a third faster here.
"""

import torch
from torch import nn
from torch.nn import functional as F

LATENT_SIZE = 32
EDGE = 28
_CELLS = 8 * 7 * 7


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class Encoder(nn.Module):
    """Encoder of images (N, 1, 28, 28) to latents (N, 32); if variational, also to the logarithm of their variance."""

    def __init__(self, *, variational: bool = False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 5, padding=2, bias=False), _norm(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 8, 5, padding=2, bias=False), _norm(8)
        self.code = nn.Linear(_CELLS, LATENT_SIZE, bias=False)
        self.log_variance = nn.Linear(_CELLS, LATENT_SIZE, bias=False) if variational else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        # The activation is monotonic, so it can follow the pooling, with a quarter of the operations.
        images = F.leaky_relu(F.max_pool2d(self.norm1(self.conv1(images)), 2))
        return F.leaky_relu(F.max_pool2d(self.norm2(self.conv2(images)), 2)).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.code(self.features(images))


class Decoder(nn.Module):
    """Decoder of latents (N, 32) to images (N, 1, 28, 28) in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.spread, self.norm0 = nn.Linear(LATENT_SIZE, _CELLS, bias=False), _norm(8)
        self.conv1, self.norm1 = _doubling(8, 4, bias=False), _norm(4)
        # The only bias, for the grey level of the background.
        self.conv2 = _doubling(4, 1, bias=True)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        images = F.leaky_relu(self.norm0(self.spread(latents).unflatten(1, (8, 7, 7))))
        return torch.sigmoid(self.conv2(F.leaky_relu(self.norm1(self.conv1(images)))))


def _doubling(channels: int, out: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 5, stride=2, padding=2, output_padding=1, bias=bias)


class AutoEncoder(nn.Module):
    """Encoder and decoder."""

    def __init__(self, *, variational: bool = False):
        super().__init__()
        self.encoder, self.decoder = Encoder(variational=variational), Decoder()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))
