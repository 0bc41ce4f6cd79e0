"""Anatomy that all phantoms are warped from: a brain from tissue maps and a head modelled around it.

The brain is taken from the tissue maps in the nilearn wheel (ICBM 2009a symmetric, 1 mm). Skull, scalp, face and neck
are simple solids around it. All coordinates are template millimetres, RAS+.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from nilearn import datasets
from scipy import ndimage

from ..images.grid import Grid
from .phantom_fields import smooth_noise

HEAD_SPACING_MM = 2.0
_HEAD_LOWEST_MM = np.array([-104.0, -150.0, -190.0])
_HEAD_SIZE_VOX = (105, 146, 150)


class Part(IntEnum):
    """Tissue of a voxel of the head outside the brain."""

    AIR = 0
    FLUID = 1
    BONE = 2
    MARROW = 3
    FAT = 4
    SKIN = 5
    MUSCLE = 6
    CORD = 7
    CAPSULE = 8


@dataclass(frozen=True, eq=False)
class BrainMaps:
    """Tissue probabilities on the template's 1 mm grid.

    Attributes
    ----------
    grey, white, brain : ndarray, (X, Y, Z) float32
        In [0, 1]; `brain` is the brain mask. Fluid is the remainder: brain - grey - white.
    detail : ndarray, (X, Y, Z) float32
        Residual of the template's T1w after the three tissues (a brighter thalamus, a darker putamen), in units of
        the white matter intensity.
    affine : ndarray, (4, 4)
    """

    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray
    detail: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class HeadSolids:
    """Head around the brain on a 2 mm grid.

    Attributes
    ----------
    brain_distance_mm : ndarray, (X, Y, Z) float32
        Distance from the closed surface of the brain; negative inside.
    depth_mm : ndarray, (X, Y, Z) float32
        Depth below the surface of the head; negative outside.
    face : ndarray, (X, Y, Z) int8
        `Part` of the voxels of face, neck and spine; -1 where the layers of skull and scalp apply.
    grid : Grid
    """

    brain_distance_mm: np.ndarray
    depth_mm: np.ndarray
    face: np.ndarray
    grid: Grid


@lru_cache(maxsize=4)
def brain_maps(spacing_mm: float) -> BrainMaps:
    """Return the tissue maps, blurred for sampling at a spacing.

    Parameters
    ----------
    spacing_mm : float
        Spacing of the grid on which the maps will be sampled.
    """
    grey_image = datasets.load_mni152_gm_template(resolution=1)
    grey = grey_image.get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32)
    t1w = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)

    inside = brain > 0
    tissues = np.stack([grey[inside], white[inside], np.maximum(1 - grey[inside] - white[inside], 0)], axis=1)
    means = np.linalg.lstsq(tissues, t1w[inside], rcond=None)[0]
    detail = np.zeros_like(t1w)
    detail[inside] = np.clip((t1w[inside] - tissues @ means) / means[1], -0.25, 0.25)

    # A voxel averages over its width; sampling every 4 mm without blur would pick single 1 mm voxels.
    sigma_vox = 0.35 * np.sqrt(max(spacing_mm**2 - 1, 0))
    grey, white, brain, detail = (
        ndimage.gaussian_filter(each, sigma_vox, truncate=3) if sigma_vox else each
        for each in (grey, white, brain, detail)
    )
    return BrainMaps(grey, white, brain, detail, np.asarray(grey_image.affine, dtype=np.float64))


@lru_cache(maxsize=1)
def head_solids() -> HeadSolids:
    """Return the head around the brain: distances for the layers of skull and scalp, and parts of face and neck."""
    affine = np.diag([HEAD_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = _HEAD_LOWEST_MM
    grid = Grid(_HEAD_SIZE_VOX, affine)
    x, y, z = (
        (lowest + HEAD_SPACING_MM * np.arange(n, dtype=np.float32)).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (lowest, n) in enumerate(zip(_HEAD_LOWEST_MM, _HEAD_SIZE_VOX, strict=True))
    )
    brain = _brain_on(grid)
    closed = _distance_mm(_distance_mm(brain) < 10) < -9
    brain_distance_mm = _distance_mm(closed | brain)

    def solid(centre, half_axes):
        return sum(((a - c) / h) ** 2 for a, c, h in zip((x, y, z), centre, half_axes, strict=True)) < 1

    def both_sides(centre, half_axes):
        return solid(centre, half_axes) | solid((-centre[0], *centre[1:]), half_axes)

    # The neck slopes backwards towards the skull.
    neck_y = -30 + 0.15 * (z + 70)
    neck = ((x / 62) ** 2 + ((y - neck_y) / 62) ** 2 < 1) & (z < -40)
    head = (
        (brain_distance_mm < 14)
        | neck
        | solid((0, 42, -62), (68, 66, 82))
        | solid((0, 106, -46), (15, 20, 24))
        | solid((0, 78, -116), (30, 28, 24))
    )
    head = ndimage.gaussian_filter(head.astype(np.float32), 3) > 0.5
    head |= both_sides((80, -22, -38), (7, 16, 28)) | solid((0, 118, -52), (9, 9, 9))
    depth_mm = -_distance_mm(head)

    face = np.full(grid.size_vox, -1, dtype=np.int8)
    below = head & (brain_distance_mm > 9) & (z < 10)
    deep = below & (depth_mm > 2)
    # Fat lies under the skin and, in streaks, between the muscles.
    rng = np.random.default_rng(0)
    face[deep] = Part.MUSCLE
    face[deep & ((depth_mm < 6) | (smooth_noise(grid.size_vox, (1.3, 1.3, 5), rng) > 1.1))] = Part.FAT
    face[below & (depth_mm <= 2)] = Part.SKIN

    jaw = (np.hypot(x / 50, (y - 36) / 60) < 1) & (np.hypot(x / 43, (y - 34) / 54) > 1) & (y > 24)
    midface = solid((0, 72, -54), (44, 24, 28))
    cells = smooth_noise(grid.size_vox, 1.5, rng)
    parts = [
        (Part.MUSCLE, solid((0, 62, -84), (28, 30, 14))),
        (Part.BONE, jaw & (z > -116) & (z < -76)),
        (Part.MARROW, jaw & (z > -112) & (z < -100)),
        (Part.AIR, solid((0, 60, -76), (30, 32, 2.5))),
        (Part.BONE, midface),
        (Part.MUSCLE, midface & (cells > 0.5)),
        (Part.MARROW, midface & (cells < -0.9)),
        (Part.FAT, both_sides((32, 66, -36), (19, 28, 18))),
        (Part.MUSCLE, both_sides((26, 52, -36), (5, 20, 9))),
        (Part.FLUID, both_sides((32, 78, -36), (12.5, 12.5, 12.5))),
        (Part.AIR, both_sides((28, 70, -60), (11, 14, 13))),
        (Part.AIR, both_sides((5, 84, -54), (3, 24, 13))),
        (Part.AIR, solid((0, 28, -32), (12, 11, 9))),
        (Part.AIR, solid((0, 26, -62), (12, 9, 20))),
        (Part.AIR, ((x / 10) ** 2 + ((y - 22) / 7) ** 2 < 1) & (z < -62)),
        (Part.BONE, both_sides((58, -42, -48), (14, 18, 18))),
        (Part.AIR, both_sides((60, -44, -50), (7, 8, 9))),
    ]
    for part, where in parts:
        face[deep & where] = part

    # The spine: vertebrae in front of the cord, with discs between them, and arches behind.
    cord_y = -44 + 0.15 * (z + 70)
    around = np.sqrt((x / 1.1) ** 2 + (y - cord_y) ** 2)
    low = head & (z < -64)
    body = low & (np.hypot(x / 14, (y - cord_y - 20) / 10) < 1) & (z < -84)
    face[body] = np.where(((z % 18) > 4) & body, Part.MARROW, Part.BONE)[body]
    face[low & (around < 15) & (y < cord_y + 8)] = Part.BONE
    face[low & (around < 9.5)] = Part.FLUID
    face[low & (around < 6)] = Part.CORD
    return HeadSolids(brain_distance_mm, depth_mm, face, grid)


def layered_head(extra_skull_mm: np.ndarray) -> np.ndarray:
    """Return an individual head: layers of skull and scalp around the brain.

    An oil capsule at the right temple marks the right side, as in clinical practice.

    Parameters
    ----------
    extra_skull_mm : ndarray, (X, Y, Z)
        Added to the thickness of the skull, on the grid of `head_solids`; the scalp becomes thinner.

    Returns
    -------
    ndarray, (X, Y, Z) int8
        `Part` of every voxel; fluid in place of the brain.
    """
    solids = head_solids()
    distance, depth = solids.brain_distance_mm, solids.depth_mm
    parts = np.zeros(solids.grid.size_vox, dtype=np.int8)
    in_head = depth > 0
    parts[in_head] = Part.FAT
    parts[in_head & (depth <= 2)] = Part.SKIN
    # From the outside in: outer table, marrow, inner table, fluid.
    parts[in_head & (distance < 8 + extra_skull_mm)] = Part.BONE
    parts[in_head & (distance < 6 + 0.7 * extra_skull_mm)] = Part.MARROW
    parts[in_head & (distance < 3.5)] = Part.BONE
    parts[distance < 1.5] = Part.FLUID
    # The spinal canal opens into the skull; all other parts stay outside.
    canal = np.isin(solids.face, (Part.FLUID, Part.CORD)) & (distance > 0)
    solid_parts = canal | ((solids.face >= 0) & (distance > 8))
    parts[solid_parts] = solids.face[solid_parts]
    x, y, z = (
        lowest + HEAD_SPACING_MM * axis
        for lowest, axis in zip(_HEAD_LOWEST_MM, np.ogrid[tuple(slice(n) for n in parts.shape)], strict=True)
    )
    temple = in_head[:, _index(12, 1), _index(8, 2)]
    right = np.flatnonzero(temple)[-1] * HEAD_SPACING_MM + _HEAD_LOWEST_MM[0]
    parts[((x - right - 5) / 6) ** 2 + ((y - 12) / 6) ** 2 + ((z - 8) / 8) ** 2 < 1] = Part.CAPSULE
    return parts


def _index(mm: float, axis: int) -> int:
    return round((mm - _HEAD_LOWEST_MM[axis]) / HEAD_SPACING_MM)


def _brain_on(grid: Grid) -> np.ndarray:
    maps = brain_maps(1.0)
    to_map = np.linalg.inv(maps.affine) @ grid.affine
    return ndimage.affine_transform(maps.brain, to_map, output_shape=grid.size_vox, order=1) > 0.5


def _distance_mm(mask: np.ndarray) -> np.ndarray:
    """Return the signed distance from the surface of a mask, negative inside."""
    outside = np.asarray(ndimage.distance_transform_edt(~mask), dtype=np.float32)
    inside = np.asarray(ndimage.distance_transform_edt(mask), dtype=np.float32)
    return HEAD_SPACING_MM * np.where(mask, 0.5 - inside, outside - 0.5)
