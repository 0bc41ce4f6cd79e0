"""Gaussian smoothing of -log10 p within the brain.

Lesions usually span several voxels, noise does not. The maps of the scorers are smoothed before they are combined, so
that neighbouring voxels of one scorer support each other before the other scorers are mixed in.
"""

from dataclasses import dataclass

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from .calibration import Calibration


def smoothed(values: np.ndarray, inside: np.ndarray, grid: VoxelMask, sigma_mm: float) -> np.ndarray:
    """Smooth the values of one subject within its brain.

    Parameters
    ----------
    values : ndarray, (P,)
    inside : ndarray of bool, (P,)
        Brain mask of the subject.
    grid : VoxelMask
    sigma_mm : float
        Standard deviation of the Gaussian.

    Returns
    -------
    ndarray, (P,), float32
        Weighted means over the voxels inside the brain; 0 outside.
    """
    weights = np.maximum(grid.blurred(inside.astype(np.float32), sigma_mm), 1e-6)
    values = np.where(inside, values, 0).astype(np.float32)
    return np.where(inside, grid.blurred(values, sigma_mm) / weights, 0)


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Smoothing of -log10 p, followed by a second calibration.

    Smoothed values are no longer -log10 p: a mean over neighbours is lower than single values of the same p.

    Attributes
    ----------
    mask : VoxelMask
    sigma_mm : float
        Standard deviation of the Gaussian.
    calibration : Calibration
        Calibration of the smoothed values.
    """

    mask: VoxelMask
    sigma_mm: float
    calibration: Calibration

    def neg_log10_p(self, neg_log10_p: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Smooth -log10 p (P,) and calibrate the result, (P,) float32."""
        return self.calibration.neg_log10_p(smoothed(neg_log10_p, inside, self.mask, self.sigma_mm))
