"""Vector-quantised auto-encoder with a transformer over its codes; unlikely codes are drawn again.

Pinaya, Tudosiu, Gray, Rees, Nachev, Ourselin, Cardoso, "Unsupervised brain imaging 3D anomaly detection and
segmentation with transformers" (MedIA 2022): an auto-encoder g(f(x)) turns a scan into a grid of codes z, each one of
a few, and a transformer learns how likely each code is after those before it,

    loss = -mean_i log p(z_i | z_1, ..., z_{i-1}).

Codes of a patient with p(z_i | ...) < t are drawn again from p, in order, given those before them as redrawn:

    score(x) = w(x) mean_k |x - g(z_k)|,

z_k the codes of draw k, and w 1 where codes were redrawn and 0 elsewhere, enlarged to voxels and smoothed, so that
what the auto-encoder blurs does not count.

There: 2D and 3D, 256 channels, three halvings at 1 mm (codes of 8 mm), 32 codes, t = 0.005, an ensemble of transformers
(Performer) that read the codes in different orders. Here: MONAI's networks on axial slices, one transformer, row by
row; sizes of the preset, where `cpu` halves twice (codes of 8 mm at 2 mm), and the size of the transformer of `paper`
is ours; the codebook starts from encodings of the brain. A code has one random number, however often it is drawn: so
drawing all codes at once, until none changes, gives what drawing them one by one would. After `_PASSES` rounds codes
are taken as they are. What has no code, as tissue brighter than that of any control, gets the nearest code of healthy
tissue: only if that is unlikely there, it is seen.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from monai.inferers.inferer import VQVAETransformerInferer
from monai.networks.nets.transformer import DecoderOnlyTransformer
from monai.networks.nets.vqvae import VQVAE
from monai.utils.ordering import Ordering
from torch import nn
from torch.nn import functional

from .autoencoders import LEARNING_RATE
from .presets import Preset
from .scans import Controls
from .slice_networks import SliceNetwork, mean_inside, residual
from .slices import SliceBatches, Slices

_CODES, _CODE_SIZE = 32, 32
_HEADS = 8
_UNLIKELY = 0.005
_PASSES = 6
_SEED_OF_DRAWS = 0
_HALVING, _DOUBLING = (2, 4, 1, 1), (2, 4, 1, 1, 0)
"""Stride, kernel, dilation, padding (and output padding) of a convolution."""


class _Codes(SliceNetwork):
    """The vector-quantised auto-encoder."""

    name = "vqvae-transformer-codes"
    learning_rate = LEARNING_RATE

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network."""
        widths = preset.vqvae_widths
        return VQVAE(
            2,
            n_channels,
            n_channels,
            channels=widths,
            num_res_layers=1,
            num_res_channels=widths,
            downsample_parameters=(_HALVING,) * len(widths),
            upsample_parameters=(_DOUBLING,) * len(widths),
            num_embeddings=_CODES,
            embedding_dim=_CODE_SIZE,
            decay=0.99,
        )

    @torch.no_grad()
    def initialise(self, network: Any, batches: SliceBatches) -> None:
        """Start the codebook from random places in the brain: codes far from all of them would never be used."""
        batch = batches[0]
        encoded = network.encode(batch.images)
        inside = functional.adaptive_max_pool2d(batch.inside.float(), encoded.shape[2:])[:, 0] > 0
        found = encoded.movedim(1, -1)[inside]
        quantizer = network.quantizer.quantizer
        chosen = found[torch.linspace(0, len(found) - 1, _CODES).long()]
        quantizer.embedding.weight.copy_(chosen)
        quantizer.ema_w.copy_(chosen)
        quantizer.ema_cluster_size.fill_(1)

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the mean absolute error in the brain, plus what keeps encodings near their codes."""
        reconstructed, commitment = network(batch.images)
        return mean_inside((reconstructed - batch.images).abs(), batch.inside) + commitment


class VqvaeTransformer(SliceNetwork):
    """Transformer over the codes; the score is what redrawing unlikely codes changes."""

    name = "vqvae-transformer"
    learning_rate = LEARNING_RATE

    def steps(self, preset: Preset) -> int:
        """Return the number of training steps of the transformer."""
        return preset.long_steps

    def fit(self, controls: Controls) -> None:
        """Train the auto-encoder, then the transformer."""
        self.codes = _Codes()
        self.codes.fit(replace(controls, seed=controls.seed + 1))
        height, width = (edge // 2 ** len(controls.preset.vqvae_widths) for edge in self.codes.frame.size)
        self.ordering = Ordering("raster_scan", 2, (1, height, width))
        super().fit(controls)

    def make(self, n_channels: int, size: tuple[int, int], preset: Preset) -> nn.Module:
        """Return the network; one code more than there are marks the start."""
        hidden, layers = preset.code_transformer
        length = math.prod(self.ordering.dimensions)
        return DecoderOnlyTransformer(_CODES + 1, length, hidden, layers, _HEADS, use_flash_attention=True)

    def loss(self, network: Any, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the cross-entropy of the codes."""
        vqvae: Any = self.codes.network
        logits, codes, _ = VQVAETransformerInferer()(batch.images, vqvae, network, self.ordering, return_latent=True)
        return functional.cross_entropy(logits.transpose(1, 2), codes)

    @torch.inference_mode()
    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the mean residual of the redrawn slices, near redrawn codes."""
        vqvae: Any = self.codes.network
        network: Any = self.network
        likelihood = VQVAETransformerInferer().get_likelihood(slices.images, vqvae, network, self.ordering)
        unlikely = likelihood < math.log(_UNLIKELY)
        scores = torch.zeros_like(slices.images[:, 0])
        rows = torch.nonzero(unlikely.flatten(1).any(dim=1))[:, 0]
        if len(rows) == 0:
            return scores
        images, redrawn = slices.images[rows], unlikely[rows]
        codes = vqvae.index_quantize(images)
        generator = torch.Generator().manual_seed(_SEED_OF_DRAWS)
        error = torch.zeros_like(images[:, 0])
        for _ in range(self.preset.redraws):
            uniform = torch.rand(codes.shape[1:], generator=generator).to(images.device)
            drawn = redraw(network, codes.flatten(1), redrawn.flatten(1), uniform.flatten())
            error += residual(images, vqvae.decode_samples(drawn.view_as(codes))) / self.preset.redraws
        scores[rows] = error * smooth_mask(redrawn, images.shape[2:])
        return scores


def redraw(
    network: nn.Module, codes: torch.Tensor, chosen: torch.Tensor, uniform: torch.Tensor, passes: int = _PASSES
) -> torch.Tensor:
    """Draw codes again from what a network expects after the codes before them.

    Parameters
    ----------
    network : Module
        Returns logits (N, L, K + 1) of each code, given those before it; its input starts with the number K.
    codes : Tensor of int, (N, L)
    chosen : Tensor of bool, (N, L)
        The codes to draw; the others stay.
    uniform : Tensor, (L,)
        Random number in [0, 1) of each place: the code drawn is the first whose cumulative probability exceeds it.
    passes : int
        All codes are drawn at once so often, or until none changes: the first code is right after one pass, and each
        further pass corrects at least one more.
    """
    for _ in range(passes):
        before = functional.pad(codes, (1, 0), value=_CODES)[:, :-1]
        cumulative = network(before)[..., :_CODES].softmax(dim=-1).cumsum(dim=-1)
        drawn = (cumulative <= uniform[:, None]).sum(dim=-1).clamp(max=_CODES - 1)
        found = torch.where(chosen, drawn, codes)
        if torch.equal(found, codes):
            break
        codes = found
    return codes


def smooth_mask(redrawn: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Enlarge a mask of codes (N, h, w) to slices (N, H, W); it falls from 1 to 0 over the size of a code."""
    return functional.interpolate(redrawn[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
