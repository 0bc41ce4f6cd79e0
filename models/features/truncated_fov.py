"""Exclusion of voxels near a truncated field of view.

A field of view that is too narrow, or lost slices, truncates the brain. Patches near the truncation contain background
where those of other subjects contain brain. In a patient this causes a sheet of false findings; in a control it
distorts the calibration. Voxels whose features reach the truncation are therefore excluded. The natural surface of the
brain varies by only some millimetres between subjects and does not count as truncation.
"""

import numpy as np
from scipy import ndimage

from ...preprocessing.patches.voxel_mask import VoxelMask

_DEPTH_MM = 6.0
"""Depth below the surface of the mask, along each axis, from which missing brain counts as truncation. The natural
surface was less deep in all of 82 prepared heads."""


def away_from_truncation(inside: np.ndarray, mask: VoxelMask, reach_vox: int) -> np.ndarray:
    """Remove the voxels near a truncated field of view from a brain mask.

    Parameters
    ----------
    inside : ndarray of bool, (P,)
        Brain mask of the subject.
    mask : VoxelMask
    reach_vox : int
        Reach of the features, see `Features.reach_vox`.

    Returns
    -------
    ndarray of bool, (P,)
        `inside` itself if nothing is truncated.
    """
    if reach_vox == 0:
        return inside
    missing = mask.inverse_transform(~inside)
    depth_vox = np.ceil(_DEPTH_MM / mask.grid.spacing_mm).astype(int)
    deep = ndimage.minimum_filter(mask.brain_mask, size=2 * depth_vox + 1, mode="constant")
    truncated = missing & deep
    if not truncated.any():
        return inside
    # Missing voxels between the truncated ones and the surface belong to the same truncation.
    near = np.asarray(ndimage.distance_transform_edt(~truncated, sampling=mask.grid.spacing_mm)) <= 2 * _DEPTH_MM
    excluded = ndimage.binary_dilation(missing & near, np.ones((3, 3, 3), bool), iterations=reach_vox)
    return inside & ~mask.transform(excluded)
