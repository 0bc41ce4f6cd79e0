"""Sizes of the rivals' networks and lengths of their training."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...data_manifests.errors import UserError


@dataclass(frozen=True)
class Preset:
    """Sizes and lengths for a kind of machine.

    Attributes
    ----------
    name : str
    folds : int
        Each network is trained once without each fold of the controls.
    steps : int
        Most training steps of a network; it stops earlier once its loss on the held-back controls no longer falls.
    batch : int
        Slices of a step.
    widths : tuple of int
        Channels of convolutional networks, from the first to the deepest resolution.
    latent_size : int
        Of variational auto-encoders with a dense latent.
    spatial_latents : int
        Channels of the latent of the spatial variational auto-encoder.
    restoration_steps : int
        Gradient steps by which a scan is restored.
    masked_passes : int
        Random masks of the masked auto-encoder for each slice.
    transformer : (int, int)
        Hidden size and layers of the masked auto-encoder.
    encoder_steps : int
        Training steps of patch encoders.
    long_steps : int
        Most training steps of the networks with the most costly ones: transformer over codes, diffusion.
    vqvae_widths : tuple of int
        Channels of the vector-quantised auto-encoder, one for each halving.
    code_transformer : (int, int)
        Hidden size and layers of the transformer over codes.
    redraws : int
        Times that unlikely codes are drawn again.
    diffusion_widths : tuple of int
        Channels of the diffusion network, multiples of 8, from the first to the deepest resolution.
    """

    name: str
    folds: int
    steps: int
    batch: int
    widths: tuple[int, ...]
    latent_size: int
    spatial_latents: int
    restoration_steps: int
    masked_passes: int
    transformer: tuple[int, int]
    encoder_steps: int
    long_steps: int
    vqvae_widths: tuple[int, ...]
    code_transformer: tuple[int, int]
    redraws: int
    diffusion_widths: tuple[int, ...]


CPU = Preset(
    "cpu",
    folds=3,
    steps=3000,
    batch=16,
    widths=(16, 32, 64, 128),
    latent_size=128,
    spatial_latents=16,
    restoration_steps=25,
    masked_passes=8,
    transformer=(192, 4),
    encoder_steps=4000,
    long_steps=1500,
    vqvae_widths=(32, 32),
    code_transformer=(96, 4),
    redraws=2,
    diffusion_widths=(16, 32, 32, 32),
)
"""Some 45 minutes of one core a method or less, the transformer over codes and diffusion apart, with 50 controls and 32
scans to map at 2 mm (docs/rivals.md#cost)."""
PAPER = Preset(
    "paper",
    folds=5,
    steps=100_000,
    batch=64,
    widths=(32, 64, 128, 256),
    latent_size=128,
    spatial_latents=32,
    restoration_steps=500,
    masked_passes=10,
    transformer=(384, 6),
    encoder_steps=20_000,
    long_steps=100_000,
    vqvae_widths=(256, 256, 256),
    code_transformer=(256, 12),
    redraws=8,
    diffusion_widths=(128, 256, 256),
)
"""As published, for a GPU."""
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (CPU, PAPER)})


def preset_named(name: str) -> Preset:
    """Return a preset.

    Raises
    ------
    UserError
        There is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: found {name}, expected one of {', '.join(PRESETS)}. Choose one of them.")
    return PRESETS[name]
