"""Small synthetic brains: two tissues, a ventricle of varying size, smooth noise; and their lesions."""

from pathlib import Path

import numpy as np
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.models.rivals.presets import Preset
from voxout.models.rivals.scans import Controls, Scan
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (32, 32, 14)
SMALL = Preset(
    "small",
    folds=2,
    steps=200,
    batch=8,
    widths=(8, 16, 16, 16),
    latent_size=24,
    spatial_latents=8,
    restoration_steps=8,
    masked_passes=4,
    transformer=(48, 2),
    encoder_steps=150,
    long_steps=200,
    vqvae_widths=(16, 16),
    code_transformer=(32, 2),
    redraws=2,
    diffusion_widths=(8, 16, 16),
)
_CENTRE = np.array([15.5, 15.5, 6.5])
_AT = (np.indices(SHAPE).T - _CENTRE).T
RADIUS = np.sqrt((_AT[0] / 14) ** 2 + (_AT[1] / 14) ** 2 + (_AT[2] / 6.5) ** 2)
MASK = VoxelMask(Grid(SHAPE, np.diag([4.0, 4, 4, 1])), RADIUS < 1)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}))


def brain(seed: int) -> np.ndarray:
    """A healthy brain, (X, Y, Z) float32: grey around white matter around a dark ventricle."""
    random = np.random.default_rng(seed)
    size = 1 + 0.05 * random.normal()
    image = np.where(RADIUS < 0.75, 0.7, 0.45)
    image = np.where(RADIUS / size < 0.25, 0.12, image)
    noise = ndimage.gaussian_filter(random.normal(size=SHAPE), 1)
    image = ndimage.gaussian_filter(image, 0.6) + 0.02 * noise / noise.std()
    return (image * MASK.brain_mask).clip(0, 1).astype(np.float32)


def controls(folder: Path, count: int = 12, preset: Preset = SMALL, seed: int = 0) -> Controls:
    """Healthy brains as a rival gets them."""
    keys = tuple(f"sub-{number:02}" for number in range(count))
    volumes = np.stack([brain(100 + number)[None] for number in range(count)]).astype(np.float16)
    inside = np.broadcast_to(MASK.brain_mask, (count, *SHAPE))
    store = VolumeStore(folder, keys, ("t1w",), MASK, volumes, inside)
    return Controls(store, CHANNELS, keys, folder, seed, preset, jobs=1)


def scan(image: np.ndarray, key: str = "sub-patient") -> Scan:
    """A scan of one modality."""
    return Scan(key, image[None].astype(np.float32), ("t1w",), 1, MASK.brain_mask)


def ball(radius: float, centre: tuple[int, int, int] = (15, 24, 6)) -> np.ndarray:
    """A ball in the white matter, (X, Y, Z) bool."""
    distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(np.indices(SHAPE), centre, strict=True)))
    return (distance <= radius) & MASK.brain_mask


def bright_blob() -> tuple[np.ndarray, np.ndarray]:
    """A patient whose white matter is far too bright in a ball; and the ball."""
    image, lesion = brain(7), ball(3)
    return np.where(lesion, 1.0, image), lesion


def missing_part() -> tuple[np.ndarray, np.ndarray]:
    """A patient who lacks tissue in a ball; and the ball."""
    image, lesion = brain(7), ball(3)
    return np.where(lesion, 0.0, image), lesion


def texture() -> tuple[np.ndarray, np.ndarray]:
    """A patient with a checkered ball of the same mean; and the ball."""
    image, lesion = brain(7), ball(4)
    checks = 0.15 * np.where(np.indices(SHAPE).sum(axis=0) % 2, 1, -1)
    return np.where(lesion, image + checks, image), lesion
