"""Brains that end too early: a field of view that was set too narrow, or an image that lost its last slices.

Where a brain ends by nature, every control's does, within millimetres. A cut is another matter: patches beside it hold
nothing where all others hold brain. No intensity is unusual there, and yet a patient would show a sheet of findings,
and a control would teach the calibration that healthy brains look like that. So what lies beside a cut is left out.
"""

import numpy as np
from scipy import ndimage

from ...preprocessing.patches.voxel_mask import VoxelMask

_DEPTH_MM = 6.0
"""Below the surface of the locations, along each axis: no brain ends so deep by nature, none of 82 prepared heads."""


def away_from_truncation(inside: np.ndarray, grid: VoxelMask, reach_vox: int) -> np.ndarray:
    """A brain without what lies beside a cut.

    Parameters
    ----------
    inside : ndarray of bool, (P,)
        The subject's own brain.
    grid : VoxelMask
    reach_vox : int
        How far off a voxel what is looked at lies, at most.

    Returns
    -------
    ndarray of bool, (P,)
        `inside` itself where nothing is cut.
    """
    if reach_vox == 0:
        return inside
    missing = grid.inverse_transform(~inside)
    depth_vox = np.ceil(_DEPTH_MM / grid.grid.spacing_mm).astype(int)
    deep = ndimage.minimum_filter(grid.brain_mask, size=2 * depth_vox + 1, mode="constant")
    cut = missing & deep
    if not cut.any():
        return inside
    # What is missing further up, to the surface, belongs to the same cut.
    near = np.asarray(ndimage.distance_transform_edt(~cut, sampling=grid.grid.spacing_mm)) <= 2 * _DEPTH_MM
    beside = ndimage.binary_dilation(missing & near, np.ones((3, 3, 3), bool), iterations=reach_vox)
    return inside & ~grid.transform(beside)
