"""Calibration of a map to the age of the patient.

Brains of older people differ more from each other, most of all around the ventricles and in sulci: calibrated on
controls of all ages, a healthy old brain has more high scores than a young one. The -log10 p are therefore calibrated
once more, on controls weighted by their distance in age, for a few ages; between two of them, -log10 p is interpolated.

Only the calibration follows the age. What a healthy brain looks like is learnt from all controls, since a covariance or
a detector needs more of them than there are of any age.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.images.memory_map import rows_of
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.packed_masks import Masks
from ..features.subsets import effective_number, effective_weights
from ..tensor_file import opened_tensors, write_tensors
from .calibration import Calibration, calibrate

FILE = "ages.safetensors"
"""Name in the folder of a model; models without this calibration have no such file."""
_OWN_FOLD_WEIGHT = 0.25
"""As in `calibrate`, where it is twice as large: around an age, a control has more weight among fewer controls. Chosen
by the share of the voxels of unseen healthy brains above 3.09."""
FEWEST_EFFECTIVE = 10
"""Effective number of controls around an age; with fewer, single persons decide the calibration."""


@dataclass(frozen=True, eq=False)
class AgeCalibration:
    """Calibration of -log10 p for several ages.

    Attributes
    ----------
    ages : ndarray, (K,), float64
        Ascending, in years; at least two.
    calibrations : tuple of Calibration
        One for each of the ages.
    """

    ages: np.ndarray
    calibrations: tuple[Calibration, ...]

    @classmethod
    def fit(
        cls,
        null: np.ndarray,
        inside: Masks,
        folds: Sequence[np.ndarray],
        mask: VoxelMask,
        ages: Sequence[float | None],
        years: float,
        new_array: Callable[[], np.ndarray],
    ) -> "AgeCalibration | None":
        """Fit to the -log10 p of the controls, which are overwritten with those for their own ages.

        Parameters
        ----------
        null : ndarray, (S, P), float32
            -log10 p of each control from a model fitted without it; may be memory-mapped.
        inside : (S, P) bool
            Brain mask of each control.
        folds : sequence of ndarray of int
            See `calibrate`.
        mask : VoxelMask
        ages : sequence of float or None, (S,)
            Those of controls without an age stay as they are.
        years : float
            Standard deviation of the Gaussian by which controls of another age weigh less.
        new_array : callable
            Returns an array for values of all controls, (S, P) float32.

        Returns
        -------
        AgeCalibration or None
            None if there are not two ages with `FEWEST_EFFECTIVE` controls around them; `null` is then unchanged.
        """
        own = np.array([np.nan if age is None else age for age in ages])
        knots = _knots(own, years)
        if len(knots) < 2:
            return None
        shares = _shares(own, knots)
        values, matched = new_array(), new_array()
        matched[:] = 0
        calibrations = []
        for knot, of_controls in zip(knots, shares, strict=True):
            weights = effective_weights(_weights(own, knot, years))
            calibration, _ = calibrate(
                null, inside, folds, mask, weights=weights, own_fold_weight=_OWN_FOLD_WEIGHT, out=values
            )
            calibrations.append(_rounded(calibration))
            for share, row, value in zip(of_controls, rows_of(matched), rows_of(values), strict=True):
                if share > 0:
                    row += share * value
        for known, row, value in zip(np.isfinite(own), rows_of(null), rows_of(matched), strict=True):
            if known:
                row[:] = value
        return cls(knots, tuple(calibrations))

    def neg_log10_p(self, neg_log10_p: np.ndarray, age: float) -> np.ndarray:
        """Convert -log10 p (..., P) of a subject of this age, (..., P) float32.

        Beyond the first and the last of `ages`, their calibrations are used.
        """
        shares = _shares(np.array([age]), self.ages)[:, 0]
        parts = (
            share * calibration.neg_log10_p(neg_log10_p)
            for share, calibration in zip(shares, self.calibrations, strict=True)
            if share > 0
        )
        return np.asarray(sum(parts), np.float32)

    def warnings(self, age: float | None) -> tuple[str, ...]:
        """Return a sentence if the map of a subject is not calibrated to its age."""
        if age is None:
            return ("age is not given, so the map is calibrated on controls of all ages",)
        first, last = self.ages[[0, -1]]
        half = np.diff(self.ages).min() / 2
        if first - half <= age <= last + half:
            return ()
        nearest = first if age < first else last
        return (f"there are too few controls around age {age:g}, so the map is calibrated for age {nearest:g}",)

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        tables = {
            f"{name}_{number}": getattr(calibration, name)
            for number, calibration in enumerate(self.calibrations)
            for name in ("knots", "neg_log10_p_at")
        }
        scale = np.stack([calibration.scale for calibration in self.calibrations]).astype(np.float16)
        slopes = np.array([calibration.slope for calibration in self.calibrations])
        return write_tensors(
            path,
            {"ages": self.ages, "spread": scale, "slopes": slopes, **tables},
            mask_hash=self.calibrations[0].mask_hash,
        )

    @classmethod
    def load(cls, path: Path) -> "AgeCalibration":
        """Load a saved calibration.

        Raises
        ------
        UserError
            The file is damaged.
        """
        with opened_tensors(path, "calibration to the age") as file:
            ages, slopes = file.array("ages", "float64", 1), file.array("slopes", "float64", 1)
            scale, mask_hash = file.array("spread", "float16", 2).astype(np.float32), file.metadata["mask_hash"]
            if len(ages) < 2 or not (np.diff(ages) > 0).all() or len(scale) != len(ages) or len(slopes) != len(ages):
                raise ValueError(f"found {len(ages)} ages, {len(scale)} scales and {len(slopes)} slopes")
            tables = [
                [file.array(f"{name}_{number}", "float64", 1) for number in range(len(ages))]
                for name in ("knots", "neg_log10_p_at")
            ]
            calibrations = tuple(
                Calibration.checked(own_scale, knots, neg_log10_p_at, float(slope), mask_hash)
                for own_scale, knots, neg_log10_p_at, slope in zip(scale, *tables, slopes, strict=True)
            )
        return cls(ages, calibrations)


def _knots(ages: np.ndarray, years: float) -> np.ndarray:
    """Multiples of so many years, among the ages of the controls, around which there are enough of them."""
    known = ages[np.isfinite(ages)]
    if years <= 0 or not len(known):
        return np.empty(0)
    # Multiples, since the file shall not tell how old the youngest and the oldest control are.
    first, last = np.round(known.min() / years), np.round(known.max() / years)
    knots = years * np.arange(first, last + 1)
    return np.array([k for k in knots if effective_number(_weights(ages, k, years)) >= FEWEST_EFFECTIVE])


def _weights(ages: np.ndarray, age: float, years: float) -> np.ndarray:
    """Weight of each control around an age; 0 for those whose age is unknown."""
    return np.nan_to_num(np.exp(-np.square(ages - age) / (2 * years**2)))


def _shares(ages: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Share of each knot in the linear interpolation at each of the ages (n,), (K, n); 0 where the age is unknown."""
    return np.nan_to_num(np.stack([np.interp(ages, knots, unit) for unit in np.eye(len(knots))]))


def _rounded(calibration: Calibration) -> Calibration:
    """Return a calibration whose scale is as precise as in the file."""
    scale = calibration.scale.astype(np.float16).astype(np.float32)
    return Calibration(scale, calibration.knots, calibration.neg_log10_p_at, calibration.slope, calibration.mask_hash)
