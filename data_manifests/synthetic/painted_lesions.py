"""Simulation of lesions with soft edges in healthy scans, with known position, size, contrast and lesion mask."""

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
"""Truncation of the blur, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Painted:
    """Scan with a simulated lesion.

    Attributes
    ----------
    image : Volume
        The scan with the lesion, float32.
    lesion_mask : Volume
        bool; voxels with at least half of the full change.
    """

    image: Volume
    lesion_mask: Volume


def paint_lesion(image: Volume, shape: Volume, effect: Effect, *, softness_mm: float) -> Painted:
    """Change a scan inside a shape, weighted by alpha, which rises smoothly from 0 outside to 1 inside.

    Each connected part of the shape is blurred by a Gaussian. The blurred values are then rescaled piecewise linearly:
    0 stays 0, the level that encloses the volume of the part becomes 1/2, and the peak becomes 1. For large parts this
    equals the blur. For parts smaller than the blur, the full change is still reached inside, and the lesion mask,
    alpha >= 1/2, keeps the volume of the shape (to 5 %, and except for ties between voxels).

    Parameters
    ----------
    image : Volume
        Scan in native space and units.
    shape : Volume
        Bool mask, or probability (0 to 1) such as a resampled mask, on the same grid. Parts with a total of less than
        half a voxel are ignored.
    effect : Effect
        Effect of the lesion, see `lesion_effects`.
    softness_mm : float
        Standard deviation of the blur; 0 gives hard edges.

    Returns
    -------
    Painted
        The image is unchanged where alpha is 0.

    Raises
    ------
    ValueError
        The grids differ, or the shape is empty.
    """
    if not image.grid.same_as(shape.grid):
        raise ValueError(f"shape and image have different grids ({shape.grid} and {image.grid})")
    alpha = _soft_alpha(shape, softness_mm)
    voxels = np.where(alpha > 0, effect.painted(image, alpha), image.voxels.astype(np.float32))
    return Painted(image.with_voxels(voxels), image.with_voxels(alpha >= 0.5))


def tissue_thresholds(image: Volume, brain_mask: Volume) -> tuple[float, float]:
    """Return Otsu's thresholds between the three tissue classes of a brain, in the units of the image.

    On a T1w the first threshold is between CSF and grey matter, the second between grey and white matter. The lowest
    and highest 0.5 % of the intensities are excluded.

    Raises
    ------
    UserError
        The brain has fewer than three different intensities.
    """
    low, high = threshold_multiotsu(_trimmed_intensities(image, brain_mask), classes=3)
    return float(low), float(high)


def white_grey_contrast(image: Volume, brain_mask: Volume) -> float:
    """Return the difference of the median intensities of the brightest and the middle of three tissue classes.

    The classes are those of `tissue_thresholds`. On a T1w this is white matter minus grey matter, in the units of the
    image; always positive.

    Raises
    ------
    UserError
        The brain has fewer than three different intensities.
    """
    inside = _trimmed_intensities(image, brain_mask)
    low, high = tissue_thresholds(image, brain_mask)
    return float(np.median(inside[inside > high]) - np.median(inside[(inside > low) & (inside <= high)]))


def _trimmed_intensities(image: Volume, brain_mask: Volume) -> np.ndarray:
    """Return the brain intensities without the lowest and highest 0.5 %."""
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
    """Return the 26-connected components of a mask with a volume within limits (inclusive), each on a separate grid.

    The grid of a component is its bounding box in space plus a margin of two empty voxels. Hundreds of components of a
    large mask therefore fit in memory, and resampling a component gives the same values as resampling it in the full
    mask. The components are ordered by their first voxel.
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
        if volume_vox < 0.5:  # resampling residue
            continue
        # Blur one part with padding; values beyond the edge of the scan are cropped.
        part = np.pad(np.where(labels[box] == number, weights[box], 0), [(n, n) for n in reach])
        blurred = ndimage.gaussian_filter(part, sigma_vox, mode="constant", truncate=_BLUR_REACH)
        rescaled = _rescaled(blurred, volume_vox)
        target = [slice(max(s.start - n, 0), s.stop + n) for s, n in zip(box, reach, strict=True)]
        cut = [
            slice(w.start - (s.start - n), w.start - (s.start - n) + min(w.stop, size) - w.start)
            for w, s, n, size in zip(target, box, reach, weights.shape, strict=True)
        ]
        np.maximum(alpha[tuple(target)], rescaled[tuple(cut)], out=alpha[tuple(target)])
    if not alpha.any():
        raise ValueError("the shape is empty")
    return alpha


def _rescaled(blurred: np.ndarray, volume_vox: float) -> np.ndarray:
    """Rescale piecewise linearly: 0 -> 0, level -> 1/2, peak -> 1.

    The level is 1/2 if this keeps the volume to 5 %, otherwise the nearest level that does.
    """
    # Mirrored voxels must have equal values: remove rounding errors.
    blurred = np.round(blurred / blurred.max(), 6) * blurred.max()
    count = max(1, round(volume_vox))
    slack = int(0.05 * count)
    descending = np.sort(blurred, axis=None)[::-1]
    ranks = min(count + slack, blurred.size - 1), count - slack
    lowest, highest = (float(descending[rank - 1] + descending[rank]) / 2 for rank in ranks)
    return np.interp(blurred, [0, np.clip(0.5, lowest, highest), descending[0]], [0, 0.5, 1]).astype(np.float32)
