"""The three forms in which each method's map is reported: raw, calibrated, calibrated and smoothed.

The surroundings are those of voxout's own scorers: the null scores of the controls come from fits without them, the
scale at each voxel and the table of tail probabilities from `anomaly.calibration`, the smoothing from
`anomaly.smoothing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..anomaly.calibration import Calibration, calibrate, z_from_neg_log10_p
from ..anomaly.smoothing import Smoothing, smoothed

RAW, CALIBRATED, SMOOTHED = "raw", "calibrated", "calibrated + smoothed"
FORMS = RAW, CALIBRATED, SMOOTHED


@dataclass(frozen=True, eq=False)
class Forms:
    """Calibration of a method.

    Attributes
    ----------
    calibration : Calibration
    smoothing : Smoothing
    """

    calibration: Calibration
    smoothing: Smoothing

    @classmethod
    def fit(
        cls,
        null: np.ndarray,
        inside: np.ndarray,
        folds: Sequence[np.ndarray],
        mask: VoxelMask,
        smoothing_mm: float,
    ) -> tuple["Forms", Mapping[str, np.ndarray]]:
        """Calibrate a method.

        Parameters
        ----------
        null : ndarray, (S, P)
            Raw scores of each control from a fit without it.
        inside : ndarray of bool, (S, P)
        folds : sequence of ndarray of int
            Indices of the controls of each fold.
        mask : VoxelMask
        smoothing_mm : float
            Standard deviation of the Gaussian.

        Returns
        -------
        Forms
        mapping from name to ndarray, (S, P)
            Null scores of each form; those of the calibrated forms are z-scores.

        Raises
        ------
        UserError
            The null scores are all 0, or not finite.
        """
        calibration, values = calibrate(null, inside, folds, mask)
        own = np.stack([smoothed(row, brain, mask, smoothing_mm) for row, brain in zip(values, inside, strict=True)])
        again, after = calibrate(own, inside, folds, mask)
        nulls = {RAW: null, CALIBRATED: z_from_neg_log10_p(values), SMOOTHED: z_from_neg_log10_p(after)}
        return cls(calibration, Smoothing(mask, smoothing_mm, again)), nulls

    def of(self, raw: np.ndarray, inside: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return all forms of the raw scores (P,) of a subject with brain `inside` (P,): (P,) float32 each."""
        neg_log10_p = self.calibration.neg_log10_p(raw)
        after = self.smoothing.neg_log10_p(neg_log10_p, inside)
        return {RAW: raw, CALIBRATED: z_from_neg_log10_p(neg_log10_p), SMOOTHED: z_from_neg_log10_p(after)}
