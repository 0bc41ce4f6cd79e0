"""Positions and shapes of the lesions of a phantom."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..images.grid import Grid
from .phantom_fields import smooth_noise

_CLEARANCE_MM = 25.0
"""Minimum distance between the centres of two lesions."""


@dataclass(frozen=True)
class PhantomLesion:
    """Simulated lesion of a phantom.

    Attributes
    ----------
    place : {"border", "deep"}
        Across the border of grey and white matter, or inside deep white matter.
    centre_mm : tuple of float
        Native RAS+ millimetres.
    volume_ml : float
        Volume of its part of the lesion mask.
    strength : float
        T1w darkening in multiples of the contrast between white and grey matter.
    """

    place: str
    centre_mm: tuple[float, float, float]
    volume_ml: float
    strength: float


@dataclass(frozen=True, eq=False)
class PlannedLesion:
    """Lesion before painting; `shape` is (X, Y, Z) bool."""

    place: str
    centre_mm: tuple[float, float, float]
    strength: float
    shape: np.ndarray


def plan_lesions(
    count: int, tissues: np.ndarray, points: np.ndarray, brain_mask: np.ndarray, grid: Grid, rng: np.random.Generator
) -> list[PlannedLesion]:
    """Choose place, strength and an irregular shape for each lesion.

    Parameters
    ----------
    count : int
    tissues : ndarray, (3, X, Y, Z)
        Probabilities of grey matter, white matter, fluid.
    points : ndarray, (3, X, Y, Z)
        Template coordinates of each voxel in millimetres.
    brain_mask : ndarray, (X, Y, Z) bool
    grid : Grid
    rng : Generator

    Raises
    ------
    ValueError
        No position is left for another lesion.
    """
    if not count:
        return []
    spacing = grid.spacing_mm
    depth_mm = np.asarray(ndimage.distance_transform_edt(brain_mask, sampling=spacing))
    white_depth_mm = np.asarray(ndimage.distance_transform_edt(tissues[1] > 0.5, sampling=spacing))
    cerebrum = brain_mask & (points[2] > -10) & (depth_mm > 6)
    free = {
        "border": cerebrum & (tissues[0] > 0.3) & (tissues[1] > 0.3),
        "deep": cerebrum & (white_depth_mm > 4) & (tissues[2] < 0.1),
    }
    solid_tissue = (depth_mm > 3) & (tissues[2] < 0.5)
    planned = []
    for number in range(count):
        place = ("border", "deep")[number % 2]
        strength = float(rng.uniform(0.6, 1.2))
        volume_mm3 = 1000 * float(np.exp(rng.uniform(np.log(0.35), np.log(3.5))))
        choices = np.flatnonzero(free[place])
        if not len(choices):
            raise ValueError(f"no room for lesion {number + 1} of {count}")
        centre = np.array(np.unravel_index(rng.choice(choices), grid.size_vox))
        shape = np.zeros(grid.size_vox, dtype=bool)
        near, distance_mm = _box_around(centre, _CLEARANCE_MM, grid)
        shape[near] = _ragged_blob(volume_mm3, distance_mm, solid_tissue[near], grid, rng)
        for mask in free.values():
            mask[near] &= distance_mm > _CLEARANCE_MM
        x, y, z = (float(mm) for mm in grid.affine[:3] @ [*centre, 1])
        planned.append(PlannedLesion(place, (x, y, z), strength, shape))
    return planned


def _box_around(centre: np.ndarray, reach_mm: float, grid: Grid) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the box around a voxel, clipped to the grid, and the distances in it from that voxel."""
    reach = np.ceil(reach_mm / grid.spacing_mm).astype(int)
    lows, highs = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, grid.size_vox)
    near = tuple(slice(int(a), int(b)) for a, b in zip(lows, highs, strict=True))
    steps = np.ogrid[near]
    x, y, z = ((step - c) * mm for step, c, mm in zip(steps, centre, grid.spacing_mm, strict=True))
    return near, np.sqrt(x**2 + y**2 + z**2)


def _ragged_blob(
    volume_mm3: float, distance_mm: np.ndarray, allowed: np.ndarray, grid: Grid, rng: np.random.Generator
) -> np.ndarray:
    """Return a connected irregular shape: the highest voxels of a cone plus smooth noise, up to the volume."""
    radius_mm = np.cbrt(volume_mm3 * 3 / (4 * np.pi))
    ragged = smooth_noise(distance_mm.shape, max(0.4 * radius_mm, 2.0) / float(grid.spacing_mm.mean()), rng)
    height = -distance_mm / radius_mm + 0.35 * ragged
    height[~allowed | (distance_mm > 2 * radius_mm)] = -np.inf
    keep = min(max(round(volume_mm3 / grid.voxel_volume_mm3), 1), int(np.isfinite(height).sum()))
    shape = height >= np.partition(height.ravel(), -keep)[-keep]
    labels = np.zeros(shape.shape, dtype=np.int32)
    ndimage.label(shape, output=labels)
    return labels == np.bincount(labels[shape]).argmax()
