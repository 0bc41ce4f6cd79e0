"""Synthetic anomalies: edits of a healthy image at random places of the template grid, with random smooth shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..settings import FamilyName
from .families import FAMILIES, SHAM, Crop, Tissue, sham

_SMALLEST_ML, _LARGEST_ML = 0.04, 4.0
_APART_MM = 10.0
"""Least distance between the boxes of two edits, since derived maps and smoothing reach far."""
_TRIES = 30
_SHAM_SHARE = 0.2


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
        edit = sham if is_sham else FAMILIES[family]
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
