"""Contents of synthetic anomalies: functions that edit a crop of a healthy image.

They come from several independent families, so that no single appearance is learnt as "the" anomaly (Tan et al.,
"Detecting outliers with foreign patch interpolation", MELBA 2022; Baugh et al., "Many tasks make light work", MICCAI
2023). Sham edits are resampled like real ones and are not anomalies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..settings import FamilyName

SHAM = "sham"
"""Family of the edits that are no anomalies."""


@dataclass(frozen=True)
class Tissue:
    """Intensities of the tissues in the edited image."""

    fluid: float
    grey: float
    white: float

    @property
    def contrast(self) -> float:
        """White minus grey matter; negative where grey matter is brighter."""
        return self.white - self.grey


@dataclass(frozen=True, eq=False)
class Crop:
    """The part of an image around an edit.

    Attributes
    ----------
    image : ndarray, (x, y, z), float32
    alpha : ndarray, (x, y, z), float32
        Weight of the edit, 0 to 1.
    donor : ndarray, (x, y, z), float32
        The same part of another image.
    spacing_mm : ndarray, (3,)
    tissue : Tissue
    """

    image: np.ndarray
    alpha: np.ndarray
    donor: np.ndarray
    spacing_mm: np.ndarray
    tissue: Tissue

    def blurred(self, sigma_mm: float) -> np.ndarray:
        """Smooth the image with a Gaussian of standard deviation sigma_mm."""
        return ndimage.gaussian_filter(self.image, sigma_mm / self.spacing_mm, mode="nearest")

    def blended(self, content: np.ndarray, share: float = 1.0) -> np.ndarray:
        """Mix a share of the content, weighted by alpha, into the image."""
        return self.image + share * self.alpha * (content - self.image)

    def noise(self, random: np.random.Generator, grain_mm: float) -> np.ndarray:
        """Draw noise of standard deviation 1, smooth on the scale of grain_mm."""
        noise = ndimage.gaussian_filter(random.standard_normal(self.image.shape), grain_mm / self.spacing_mm)
        return (noise / max(noise.std(), 1e-6)).astype(np.float32)

    def moved(self, displacement_mm: np.ndarray) -> np.ndarray:
        """Sample the image at places displaced by (3, x, y, z)."""
        places = np.indices(self.image.shape) + displacement_mm / self.spacing_mm[:, None, None, None]
        return ndimage.map_coordinates(self.image, places, order=3, mode="nearest")


Family = Callable[[Crop, np.random.Generator], np.ndarray]


def _sign(random: np.random.Generator) -> float:
    return 1.0 if random.random() < 0.5 else -1.0


def _foreign(crop: Crop, random: np.random.Generator) -> np.ndarray:
    return crop.blended(crop.donor, random.uniform(0.4, 1))


def _shift(crop: Crop, random: np.random.Generator) -> np.ndarray:
    return crop.image + np.float32(_sign(random) * random.uniform(0.25, 1.3) * crop.tissue.contrast) * crop.alpha


def _constant(crop: Crop, random: np.random.Generator) -> np.ndarray:
    levels = crop.tissue.fluid, crop.tissue.grey, crop.tissue.white
    level = random.uniform(min(levels), max(levels))
    return crop.blended(np.full_like(crop.image, level), random.uniform(0.3, 1))


def _blur(crop: Crop, random: np.random.Generator) -> np.ndarray:
    smooth = crop.blurred(random.uniform(1.5, 4))
    if random.random() < 0.5:
        # Lesions are as noisy as other tissue.
        detail = crop.image - crop.blurred(1.0)
        smooth = smooth + crop.noise(random, 0.6) * np.float32(1.48 * np.median(np.abs(detail)))
    return crop.blended(smooth)


def _sharpen(crop: Crop, random: np.random.Generator) -> np.ndarray:
    return crop.image + crop.alpha * np.float32(random.uniform(0.5, 2)) * (crop.image - crop.blurred(2.0))


def _noise(crop: Crop, random: np.random.Generator) -> np.ndarray:
    amplitude = np.float32(random.uniform(0.15, 0.6) * abs(crop.tissue.contrast))
    return crop.image + crop.alpha * amplitude * crop.noise(random, random.uniform(0, 2))


def _warp(crop: Crop, random: np.random.Generator) -> np.ndarray:
    grain_mm, size_mm = random.uniform(2, 5), random.uniform(1.5, 5)
    field = np.stack([crop.noise(random, grain_mm) for _ in range(3)])
    return crop.moved(size_mm / np.sqrt(3) * crop.alpha * field)


def _pinch(crop: Crop, random: np.random.Generator) -> np.ndarray:
    growth = random.uniform(0.3, 1.2) if random.random() < 0.5 else random.uniform(-0.5, -0.25)
    places = np.indices(crop.image.shape) * crop.spacing_mm[:, None, None, None]
    middle = np.array([np.average(axis, weights=crop.alpha) for axis in places])[:, None, None, None]
    return crop.moved(-growth / (1 + growth) * crop.alpha * (places - middle))


FAMILIES: Mapping[FamilyName, Family] = {
    "foreign": _foreign,
    "shift": _shift,
    "constant": _constant,
    "blur": _blur,
    "sharpen": _sharpen,
    "noise": _noise,
    "warp": _warp,
    "pinch": _pinch,
}
"""Contents of an edit, by name. Each function returns the edited crop."""


def sham(crop: Crop, random: np.random.Generator) -> np.ndarray:
    """Resample by a fraction of a voxel, as other edits do, without a visible change."""
    return crop.moved(0.3 * crop.alpha * np.stack([crop.noise(random, 4.0) for _ in range(3)]))
