"""A voxel and its neighbours: a lesion is seldom one voxel, and noise seldom more.

Each reader's surprises are smoothed before the readers are combined. Smoothed afterwards, the readers that are wrong at
a voxel would be mixed in before the neighbours of the one that is right could speak for it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...preprocessing.patches.voxel_mask import VoxelMask
from .calibration import Calibration


def smoothed(values: np.ndarray, inside: np.ndarray, grid: VoxelMask, sigma_mm: float) -> np.ndarray:
    """Weighted means within one brain.

    Parameters
    ----------
    values : ndarray, (P,)
    inside : ndarray of bool, (P,)
        The subject's own brain.
    grid : VoxelMask
    sigma_mm : float
        Standard deviation of the Gaussian.

    Returns
    -------
    ndarray, (P,), float32
        0 outside the brain.
    """
    sigma_vox = sigma_mm / grid.grid.spacing_mm

    def blurred(part: np.ndarray) -> np.ndarray:
        return grid.transform(ndimage.gaussian_filter(grid.inverse_transform(part.astype(np.float32)), sigma_vox))

    weights = np.maximum(blurred(inside), 1e-6)
    return np.where(inside, blurred(np.where(inside, values, 0)) / weights, 0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Surprises, smoothed and calibrated again: a mean of surprises is smaller than they are, and as rare.

    Attributes
    ----------
    grid : VoxelMask
    sigma_mm : float
    calibration : Calibration
        Of the smoothed surprises.
    """

    grid: VoxelMask
    sigma_mm: float
    calibration: Calibration

    def neg_log10_p(self, neg_log10_p: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """-log10 p of what a voxel and its neighbours show together: (P,) to (P,) float32."""
        return self.calibration.neg_log10_p(smoothed(neg_log10_p, inside, self.grid, self.sigma_mm))
