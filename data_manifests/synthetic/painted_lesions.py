"""Lesions painted into healthy scans: known place, size and contrast, soft edges, exact truth."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu
from skimage.measure import label

from ..errors import UserError
from ..images.grid import Grid
from ..images.volume import Volume
from .lesion_effects import Effect

_MARGIN_VOX = 2
_BLUR_REACH = 4.0
"""How many standard deviations of the blur count."""


@dataclass(frozen=True, eq=False)
class Painted:
    """A scan with a lesion in it.

    Attributes
    ----------
    image : Volume
        As the scan, float32.
    lesion_mask : Volume
        bool; the voxels where at least half of the change was made.
    """

    image: Volume
    lesion_mask: Volume


def paint_lesion(image: Volume, shape: Volume, effect: Effect, *, softness_mm: float) -> Painted:
    """Change a scan inside a shape; how much, alpha says, which rises softly from 0 outside to 1 inside.

    Each connected part of the shape is blurred by a Gaussian, and the blurred values are then stretched in two
    straight pieces: 0 stays 0; the level that encloses the volume of the part becomes 1/2; the peak becomes 1. For a
    large part that is the blur itself. In parts smaller than the blur it keeps what a plain blur loses: the full
    change is reached inside, and the truth, alpha >= 1/2, keeps the volume of the shape (to 5 %, and to ties between
    voxels).

    Parameters
    ----------
    image : Volume
        A scan in its own space and units.
    shape : Volume
        On the same grid: a bool mask, or the probability (0 to 1) that a voxel belongs to it, as resampling a mask
        gives. Parts of less than half a voxel in all are passed over.
    effect : Effect
        What the lesion does: see `lesion_effects`.
    softness_mm : float
        Standard deviation of the blur; 0 paints hard edges.

    Returns
    -------
    Painted
        The painted image is untouched where alpha is 0.

    Raises
    ------
    ValueError
        The grids differ, or the shape is empty.
    """
    if not image.grid.same_as(shape.grid):
        raise ValueError(f"the shape lies on another grid ({shape.grid}) than the image ({image.grid})")
    alpha = _soft_alpha(shape, softness_mm)
    voxels = np.where(alpha > 0, effect.painted(image, alpha), image.voxels.astype(np.float32))
    return Painted(image.with_voxels(voxels), image.with_voxels(alpha >= 0.5))


def tissue_thresholds(image: Volume, brain_mask: Volume) -> tuple[float, float]:
    """Otsu's thresholds between the three tissue classes of a brain, in the units of the image.

    On a T1w the first lies between CSF and grey matter, the second between grey and white matter. The extremes, half a
    per cent on either side, are left out.

    Raises
    ------
    UserError
        The brain holds fewer than three different intensities.
    """
    low, high = threshold_multiotsu(_usual(image, brain_mask), classes=3)
    return float(low), float(high)


def white_grey_contrast(image: Volume, brain_mask: Volume) -> float:
    """Median intensity of the brightest minus the middle one of three tissue classes (`tissue_thresholds`).

    On a T1w that is white matter minus grey matter, in the units of the image; always positive.

    Raises
    ------
    UserError
        The brain holds fewer than three different intensities.
    """
    inside = _usual(image, brain_mask)
    low, high = tissue_thresholds(image, brain_mask)
    return float(np.median(inside[inside > high]) - np.median(inside[(inside > low) & (inside <= high)]))


def _usual(image: Volume, brain_mask: Volume) -> np.ndarray:
    """The intensities of a brain without the extremes."""
    inside = image.voxels[brain_mask.voxels]
    if inside.size:
        inside = inside[(inside >= np.percentile(inside, 0.5)) & (inside <= np.percentile(inside, 99.5))]
    if len(np.unique(inside)) < 3:
        raise UserError(
            "the brain mask covers fewer than three intensities, expected the three tissues of a brain. Check that the "
            "mask belongs to the scan."
        )
    return inside


def lesion_components(mask: Volume, *, smallest_ml: float, largest_ml: float) -> list[Volume]:
    """The 26-connected parts of a mask whose volume lies within limits, each on a grid of its own.

    A part's grid is its bounding box with two empty voxels around it, where it lay in space: hundreds of parts of a
    large mask fit in memory, and resampling one onto any grid gives what the whole mask would have given. In the
    order of their first voxel; limits included.
    """
    parts = []
    around = ndimage.find_objects(mask.voxels.astype(np.uint8))
    if not around:
        return parts
    labels = np.asarray(label(mask.voxels[around[0]], connectivity=3))
    first = np.array([side.start for side in around[0]]) - _MARGIN_VOX
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        part = np.pad(labels[box] == number, _MARGIN_VOX)
        if smallest_ml <= part.sum() * mask.grid.voxel_volume_mm3 / 1000 <= largest_ml:
            affine = mask.affine.copy()
            affine[:, 3] = affine @ [*(first + [side.start for side in box]), 1]
            x, y, z = part.shape
            parts.append(Volume(part, Grid((x, y, z), affine)))
    return parts


def _soft_alpha(shape: Volume, softness_mm: float) -> np.ndarray:
    weights = np.clip(shape.voxels.astype(np.float64), 0, 1)
    labels = np.asarray(label(weights > 0, connectivity=3))
    sigma_vox = softness_mm / shape.grid.spacing_mm
    reach = np.ceil(_BLUR_REACH * sigma_vox).astype(int) + 1
    alpha = np.zeros(weights.shape, np.float32)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        volume_vox = weights[box][labels[box] == number].sum()
        if volume_vox < 0.5:  # what resampling leaves of nothing
            continue
        # The blur of one part, with room for its halo; what lies past the edge of the scan is cut off.
        part = np.pad(np.where(labels[box] == number, weights[box], 0), [(n, n) for n in reach])
        blurred = ndimage.gaussian_filter(part, sigma_vox, mode="constant", truncate=_BLUR_REACH)
        spread = _stretched(blurred, volume_vox)
        whole = [slice(max(s.start - n, 0), s.stop + n) for s, n in zip(box, reach, strict=True)]
        cut = [
            slice(w.start - (s.start - n), w.start - (s.start - n) + min(w.stop, size) - w.start)
            for w, s, n, size in zip(whole, box, reach, weights.shape, strict=True)
        ]
        np.maximum(alpha[tuple(whole)], spread[tuple(cut)], out=alpha[tuple(whole)])
    if not alpha.any():
        raise ValueError("the shape is empty")
    return alpha


def _stretched(blurred: np.ndarray, volume_vox: float) -> np.ndarray:
    """0 -> 0, level -> 1/2, peak -> 1; straight in between.

    The level is 1/2 itself where that keeps the volume to 5 %; else the nearest one that does.
    """
    # Voxels that mirror each other tie: rounding error must not tell them apart.
    blurred = np.round(blurred / blurred.max(), 6) * blurred.max()
    count = max(1, round(volume_vox))
    slack = int(0.05 * count)
    descending = np.sort(blurred, axis=None)[::-1]
    ranks = min(count + slack, blurred.size - 1), count - slack
    lowest, highest = (float(descending[rank - 1] + descending[rank]) / 2 for rank in ranks)
    return np.interp(blurred, [0, np.clip(0.5, lowest, highest), descending[0]], [0, 0.5, 1]).astype(np.float32)
