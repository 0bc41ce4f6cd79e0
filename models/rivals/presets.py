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


CPU = Preset("cpu", 3, 3000, 16, (16, 32, 64, 128), 128, 16, 25, 8, (192, 4), 4000)
"""Below 45 minutes of one core a method, with 50 controls and 32 scans to map at 2 mm (docs/rivals.md#cost)."""
PAPER = Preset("paper", 5, 100_000, 64, (32, 64, 128, 256), 128, 32, 500, 10, (384, 6), 20_000)
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
