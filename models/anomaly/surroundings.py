"""Comparison of each voxel of a head with its surroundings in that head.

In some heads a whole part of the brain looks unusual: the head is older than most controls, has wide ventricles or was
registered less well. A voxel there says less than the same voxel in a brain that fits. Therefore -log10 p is divided by
the square root of the head's own level, the mean over the surroundings, relative to that of the controls. A small
lesion hardly changes the level of its surroundings, and high values count no more than p = 0.1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.images.memory_map import rows_of
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.packed_masks import Masks
from ..tensor_file import opened_tensors, write_tensors
from .calibration import Calibration
from .smoothing import smoothed

_HIGHEST = 1.0
"""Higher -log10 p count as this in the level."""
_SMALLEST_LEVEL = 0.05
_SMALLEST_RATIO = 0.5
"""A head that fits better than the controls is not amplified beyond this."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Division of -log10 p by the square root of the relative level of the surroundings, and a second calibration.

    Attributes
    ----------
    mask : VoxelMask
    sigma_mm : float
        Standard deviation of the Gaussian over which the level is taken.
    expected : ndarray, (P,), float32
        Mean level of the controls.
    calibration : Calibration
        Calibration of the divided values.
    """

    mask: VoxelMask
    sigma_mm: float
    expected: np.ndarray
    calibration: Calibration

    @classmethod
    def fit(
        cls,
        null: np.ndarray,
        inside: Masks,
        mask: VoxelMask,
        sigma_mm: float,
        calibrate: Callable[[np.ndarray], Calibration],
        weights: np.ndarray | None = None,
    ) -> "Surroundings":
        """Fit to the controls' combined -log10 p.

        Parameters
        ----------
        null : ndarray, (S, P)
            Overwritten with -log10 p after the comparison; may be memory-mapped.
        inside : (S, P) bool
            Brain mask of each control.
        mask : VoxelMask
        sigma_mm : float
        calibrate : callable
            Fits a calibration to null scores (S, P), and overwrites them with their -log10 p.
        weights : ndarray, (S,), optional
            Weight of each control; by default 1.
        """
        # The levels are computed twice, since those of all controls may not fit into memory.
        levels = (level(row, brain, mask, sigma_mm) for row, brain in zip(rows_of(null), inside, strict=True))
        expected = expected_level(levels, inside, weights)
        for row, brain in zip(rows_of(null), inside, strict=True):
            row /= divisor(level(row, brain, mask, sigma_mm), expected)
        return cls(mask, sigma_mm, expected, calibrate(null))

    def divisor(self, neg_log10_p: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Divisor (P,) of the -log10 p of one subject, to be divided before `calibration`."""
        return divisor(level(neg_log10_p, inside, self.mask, self.sigma_mm), self.expected)

    def save(self, path: Path) -> Path:
        """Write the expected level to one safetensors file, atomically; the calibration is saved separately."""
        return write_tensors(path, {"expected": self.expected})

    @classmethod
    def load(cls, path: Path, mask: VoxelMask, sigma_mm: float, calibration: Calibration) -> "Surroundings":
        """Load saved surroundings.

        Raises
        ------
        UserError
            The file is missing, damaged, or was fitted on another brain mask.
        """
        with opened_tensors(path, "expected level of the surroundings") as file:
            expected = file.array("expected", "float32", 1)
            if len(expected) != mask.size or expected.min() < 0:
                raise ValueError(f"found {len(expected)} levels, expected {mask.size}, none below 0")
            return cls(mask, sigma_mm, expected, calibration)


def level(neg_log10_p: np.ndarray, inside: np.ndarray, mask: VoxelMask, sigma_mm: float) -> np.ndarray:
    """Mean -log10 p of the surroundings of each voxel of one subject, (P,) float32; 0 outside its brain `inside`."""
    return smoothed(np.minimum(neg_log10_p, _HIGHEST), inside, mask, sigma_mm)


def expected_level(levels: Iterable[np.ndarray], inside: Masks, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean of the controls' levels (S, P) at each voxel, over those with brain there, (P,) float32."""
    total, count = np.zeros(inside.shape[1]), np.zeros(inside.shape[1])
    weights = np.ones(len(inside)) if weights is None else weights
    for weight, row, brain in zip(weights, levels, inside, strict=True):
        total += weight * row
        count += weight * brain
    return (total / np.where(count > 0, count, 1)).astype(np.float32)


def divisor(own: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Square root of a subject's level relative to the expected one, (P,) float32."""
    return np.sqrt(np.maximum(own / np.maximum(expected, _SMALLEST_LEVEL), _SMALLEST_RATIO))
