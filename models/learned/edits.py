"""Synthetic anomalies: random edits of healthy images on the template grid.

Shapes are random smooth blobs, contents come from several independent families, so that no single appearance is learnt
as "the" anomaly (Tan et al., "Detecting outliers with foreign patch interpolation", MELBA 2022; Baugh et al., "Many
tasks make light work", MICCAI 2023). Sham edits are resampled like real ones and are not anomalies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..settings import FamilyName

_SMALLEST_ML, _LARGEST_ML = 0.04, 4.0
_APART_MM = 10.0
"""Least distance between the boxes of two edits, since derived maps and smoothing reach far."""
_TRIES = 30
SHAM = "sham"
"""Family of the edits that are no anomalies."""
_SHAM_SHARE = 0.2


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


def _sham(crop: Crop, random: np.random.Generator) -> np.ndarray:
    """Resampling by a fraction of a voxel, as other edits do, without a visible change."""
    return crop.moved(0.3 * crop.alpha * np.stack([crop.noise(random, 4.0) for _ in range(3)]))


@dataclass(frozen=True, eq=False)
class Edited:
    """Images of a healthy subject with edits.

    Attributes
    ----------
    images : ndarray, (M, X, Y, Z), float32
        One per modality, in [0, 1].
    numbers : ndarray of int16, (X, Y, Z)
        0 in unedited tissue, the number of the edit (from 1) where it has at least half of its effect, and -1 where it
        has less.
    families : tuple of str
        Family of each edit, or `SHAM`.
    """

    images: np.ndarray
    numbers: np.ndarray
    families: tuple[str, ...]


def random_blob(random: np.random.Generator, volume_ml: float, spacing_mm: np.ndarray) -> np.ndarray:
    """Draw a blob with a smooth random surface.

    Parameters
    ----------
    random : Generator
    volume_ml : float
        Volume of the voxels with at least half of the effect; at least one voxel.
    spacing_mm : ndarray, (3,)

    Returns
    -------
    ndarray, (x, y, z), float32
        Weight of the effect, 0 (at the border of the box) to 1.
    """
    radius_mm = (750 * volume_ml / np.pi) ** (1 / 3)
    half = np.ceil((1.9 * radius_mm + 4) / spacing_mm).astype(int)
    axes = [np.arange(-n, n + 1) * step for n, step in zip(half, spacing_mm, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn, _ = np.linalg.qr(random.standard_normal((3, 3)))
    stretch = np.exp(random.normal(0, 0.3, 3))
    distance = np.linalg.norm(np.tensordot(turn * stretch[:, None] / np.cbrt(stretch.prod()), places, 1), axis=0)
    bumps = ndimage.gaussian_filter(random.standard_normal(distance.shape), 0.5 * radius_mm / spacing_mm)
    field = 0.35 * bumps / max(bumps.std(), 1e-6) - distance / radius_mm
    inner = (slice(1, -1),) * 3
    field = np.pad(field[inner], 1, constant_values=-np.inf)  # nothing at the border of the box
    count = max(1, round(volume_ml * 1000 / float(np.prod(spacing_mm))))
    level = np.partition(field.ravel(), -count)[-count]
    softness = random.uniform(0.05, 0.4)
    return np.clip(0.5 + (field - level) / (2 * softness), 0, 1).astype(np.float32)


def edited(
    images: np.ndarray,
    inside: np.ndarray,
    donor: np.ndarray,
    tissues: Sequence[Tissue],
    spacing_mm: np.ndarray,
    random: np.random.Generator,
    *,
    number: int,
    families: Sequence[FamilyName] = tuple(FAMILIES),
) -> Edited:
    """Edit the images of a healthy subject at several places.

    Parameters
    ----------
    images : ndarray, (M, X, Y, Z), float32
        Standardised images, in [0, 1].
    inside : ndarray of bool, (X, Y, Z)
        Brain mask.
    donor : ndarray, (M, X, Y, Z)
        Images of another subject, the content of foreign patches.
    tissues : sequence of Tissue
        One per modality.
    spacing_mm : ndarray, (3,)
    random : Generator
    number : int
        Edits to place; fewer where there is no room.
    families : sequence of str
        Names in `FAMILIES`. One edit in five is a sham.

    Returns
    -------
    Edited
    """
    new, numbers, placed = images.astype(np.float32).copy(), np.zeros(inside.shape, np.int16), []
    candidates, centres = np.argwhere(inside), []
    for _ in range(number):
        volume_ml = float(np.exp(random.uniform(np.log(_SMALLEST_ML), np.log(_LARGEST_ML))))
        blob = random_blob(random, volume_ml, spacing_mm)
        radius_mm = float((np.array(blob.shape) * spacing_mm).max() / 2)
        centre = _free_place(candidates, centres, radius_mm, spacing_mm, random)
        if centre is None:
            continue
        box, part = _overlap(centre - np.array(blob.shape) // 2, blob.shape, inside.shape)
        alpha = np.where(inside[box], blob[part], 0).astype(np.float32)
        if alpha.max() < 0.5:
            continue
        centres.append((centre, radius_mm))
        donor_box = _donor_box(box, inside.shape, spacing_mm, random)
        is_sham = random.random() < _SHAM_SHARE
        family = families[int(random.integers(len(families)))]
        edit = _sham if is_sham else FAMILIES[family]
        placed.append(SHAM if is_sham else family)
        for image, given, tissue in zip(new, donor, tissues, strict=True):
            crop = Crop(image[box].copy(), alpha, given[donor_box].astype(np.float32), spacing_mm, tissue)
            image[box] = np.where(alpha > 0, np.clip(edit(crop, random), 0, 1), image[box])
        numbers[box] = np.where(alpha >= 0.5, len(placed), np.where(alpha > 0, -1, numbers[box]))
    return Edited(np.where(inside, new, 0), numbers, tuple(placed))


def _free_place(
    candidates: np.ndarray,
    taken: Sequence[tuple[np.ndarray, float]],
    radius_mm: float,
    spacing_mm: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray | None:
    """Find a random voxel far enough from the (centre, radius in mm) of other edits; None if there is hardly any."""
    for _ in range(_TRIES):
        centre = candidates[random.integers(len(candidates))]
        if all(np.linalg.norm((centre - c) * spacing_mm) > radius_mm + r + _APART_MM for c, r in taken):
            return centre
    return None


_Box = tuple[slice, slice, slice]


def _overlap(first: np.ndarray, size: Sequence[int], limits: Sequence[int]) -> tuple[_Box, _Box]:
    """Cut a box to an image: its slices in the image, and the same part in the box."""
    low = [max(int(f), 0) for f in first]
    high = [min(int(f) + n, limit) for f, n, limit in zip(first, size, limits, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = tuple(slice(a - int(f), b - int(f)) for a, b, f in zip(low, high, first, strict=True))
    return box, part  # type: ignore[return-value]


def _donor_box(box: _Box, limits: Sequence[int], spacing_mm: np.ndarray, random: np.random.Generator) -> _Box:
    """Move a box by at most three centimetres along each axis."""
    steps = random.uniform(-30, 30, 3) / spacing_mm
    moved = []
    for side, step, limit in zip(box, steps, limits, strict=True):
        length = side.stop - side.start
        start = int(np.clip(side.start + round(step), 0, limit - length))
        moved.append(slice(start, start + length))
    return tuple(moved)  # type: ignore[return-value]
