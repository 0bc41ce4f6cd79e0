"""Calibration of anomaly scores to -log10 p, against the scores of healthy controls.

Detectors give low scores to the controls they were fitted on. The null scores therefore come from cross-validation:
each control is scored by a detector fitted without it. Calibration has two steps:

1. *Scale.* Scores are divided by the root mean square of the null scores at the voxel, pooled over neighbours: where
   healthy brains vary much, a high score means little. In the scale that divides a null score, the control's own fold
   has half weight (`_OWN_FOLD_WEIGHT`).
2. *Tail.* p is the share of the null scores, over all voxels and controls, that reach the scaled score. Above the
   highest thousandth, an exponential fitted to the excesses is used (peaks over threshold; Coles, "An Introduction to
   Statistical Modeling of Extreme Values", 2001, with shape 0).

-log10 p is comparable between scorers and can be summed (Fisher's method to combine tests).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from ...data_manifests.cohort.subject import count_participants
from ...data_manifests.errors import UserError, counted
from ...data_manifests.images.memory_map import rows_of
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.packed_masks import Masks
from ..features.subsets import effective_number
from ..tensor_file import opened_tensors, write_tensors

_POOLING_MM = 3.0
"""Standard deviation of the Gaussian over which the scale of the null is pooled."""
_POOLING_CONTROLS = 12.5
"""Weight of the whole brain's null scale in the scale of each voxel, as a number of controls: few controls give a poor
estimate at a single voxel."""
FEWEST_PARTICIPANTS = 3
"""At least one participant is left out, and a variance needs two."""
_TAIL = 1e-3
"""Share of the null to which the exponential is fitted."""
_STEP = 0.01
"""Distance between two knots of the table, in -log10 p."""
_VALUES_AT_ONCE = 8_000_000
"""Largest number of null values that are sorted; more are subsampled."""
_SMALLEST_SCALE = 1e-6
_OWN_FOLD_WEIGHT = 0.5
"""Weight of a control's own fold in the scale of its null scores. With weight 1, outlying scores of a control raise its
own scale, and scores of unseen brains come out too high. With weight 0, they come out too low, since the detectors that
scored the other folds were fitted on the control. docs/maps.md reports the measurements."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of the scores of one scorer.

    Attributes
    ----------
    scale : ndarray, (P,), float32
        Divisor of the scores at each voxel: the pooled root mean square of the null scores.
    knots : ndarray, (K,), float64
        Ascending scaled scores.
    neg_log10_p_at : ndarray, (K,), float64
        -log10 of the share of null scores that are at least as high, at each knot.
    slope : float
        Increase of -log10 p per unit of scaled score beyond the last knot.
    mask_hash : str
        Hash of the `VoxelMask` to which the voxels belong.
    """

    scale: np.ndarray
    knots: np.ndarray
    neg_log10_p_at: np.ndarray
    slope: float
    mask_hash: str

    def neg_log10_p(self, scores: np.ndarray) -> np.ndarray:
        """Convert scores to -log10 p.

        Parameters
        ----------
        scores : ndarray, (..., P)
            Higher = more anomalous.

        Returns
        -------
        ndarray, (..., P), float32
            At least 0; higher = more anomalous. Non-decreasing in the score.
        """
        return self._neg_log10_p_of_scaled(np.asarray(scores, np.float64) / self.scale)

    def _neg_log10_p_of_scaled(self, scaled: np.ndarray) -> np.ndarray:
        beyond = np.maximum(scaled - self.knots[-1], 0) * self.slope
        return (np.interp(scaled, self.knots, self.neg_log10_p_at) + beyond).astype(np.float32)

    def z(self, scores: np.ndarray) -> np.ndarray:
        """Convert scores to z-scores of a normal distribution: p < .001 is z > 3.09."""
        return z_from_neg_log10_p(self.neg_log10_p(scores))

    def save(self, path: Path, **metadata: str) -> Path:
        """Write one safetensors file, atomically; with further metadata, if there is any."""
        tensors = {"spread": self.scale, "knots": self.knots, "neg_log10_p_at": self.neg_log10_p_at}
        return write_tensors(path, tensors, slope=repr(self.slope), mask_hash=self.mask_hash, **metadata)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Load a saved calibration.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        with opened_tensors(path, "complete calibration") as file:
            scale = file.array("spread", "float32", 1)
            knots, neg_log10_p_at = (file.array(name, "float64", 1) for name in ("knots", "neg_log10_p_at"))
            return cls.checked(scale, knots, neg_log10_p_at, file.number("slope"), file.metadata["mask_hash"])

    @classmethod
    def checked(
        cls, scale: np.ndarray, knots: np.ndarray, neg_log10_p_at: np.ndarray, slope: float, mask_hash: str
    ) -> "Calibration":
        """Return a calibration from a file; ValueError if it cannot be one."""
        if not scale.min() > 0:
            raise ValueError(f"spread is {scale.min():g} at a voxel, expected numbers above 0")
        if knots.shape != neg_log10_p_at.shape or neg_log10_p_at[0] < 0:
            raise ValueError("its table of -log10 p is invalid")
        if not ((np.diff(knots) > 0).all() and (np.diff(neg_log10_p_at) > 0).all()):
            raise ValueError("its table does not rise")
        return cls(scale, knots, neg_log10_p_at, slope, mask_hash)


def calibrate(
    null: np.ndarray,
    inside: Masks,
    folds: Sequence[np.ndarray],
    mask: VoxelMask,
    *,
    shrinkage: float | None = None,
    weights: np.ndarray | None = None,
    own_fold_weight: float = _OWN_FOLD_WEIGHT,
    out: np.ndarray | None = None,
) -> tuple[Calibration, np.ndarray]:
    """Fit a calibration to the null scores of the controls, which are read control by control.

    Parameters
    ----------
    null : ndarray, (S, P)
        Scores of each control from a detector fitted without it; may be memory-mapped.
    inside : (S, P) bool
        Brain mask of each control; voxels outside it are ignored.
    folds : sequence of ndarray of int
        Indices of the controls of each fold.
    mask : VoxelMask
    shrinkage : float, optional
        Weight of the whole brain's scale in that of each voxel; by default `pooling_shrinkage`.
    weights : ndarray, (S,), optional
        Weight of each control, as if it occurred so many times; by default 1.
    own_fold_weight : float
        Weight of a control's own fold in the scale of its null scores.
    out : ndarray, (S, P), float32, optional
        Filled with -log10 p of the controls; may be `null` itself, or memory-mapped.

    Returns
    -------
    Calibration
        Calibration for unseen brains; its scale is that of all controls.
    ndarray, (S, P), float32
        -log10 p of the controls; `out` if given.

    Raises
    ------
    UserError
        Null scores that are not finite, or all 0.
    """
    if null.shape != inside.shape or null.shape[1] != mask.size:
        raise ValueError(f"null {null.shape} and inside {inside.shape}, expected (subjects, {mask.size}) for both")
    mass = np.ones(len(null)) if weights is None else np.asarray(weights, np.float64)
    fold_of = np.zeros(len(null), np.int64)
    for number, fold in enumerate(folds):
        fold_of[fold] = number
    totals, counts = np.zeros((len(folds), mask.size)), np.zeros((len(folds), mask.size))
    for own, weight, row, brain in zip(fold_of, mass, rows_of(null), inside, strict=True):
        totals[own] += np.where(brain, weight * np.square(row, dtype=np.float64), 0)
        counts[own] += weight * brain
    total, count = totals.sum(axis=0), counts.sum(axis=0)
    if not np.isfinite(total.sum()):
        raise UserError("Calibration: the controls' scores are not finite, expected finite ones. Fit the model again.")
    if not total.sum() > 0:
        raise UserError(
            "Calibration: the controls' scores are all 0, expected scores that differ. Check that the controls are "
            "different scans; if they are, train the model again."
        )
    shrinkage = pooling_shrinkage(mass.sum()) if shrinkage is None else shrinkage
    removed = 1 - own_fold_weight
    scales = [
        _pooled_scale(total - removed * own_total, count - removed * own_count, mask, shrinkage)
        for own_total, own_count in zip(totals, counts, strict=True)
    ]
    values = np.empty(null.shape, np.float32) if out is None else out
    sample, step = [], slice(None, None, 1 + null.size // _VALUES_AT_ONCE)
    for own, row, scaled, brain in zip(fold_of, rows_of(null), rows_of(values), inside, strict=True):
        scaled[:] = row / scales[own]
        sample.append(scaled[step][brain[step]])
    counts_of_values = None if weights is None else np.repeat(mass, [len(values) for values in sample])
    table = _tail_table(np.concatenate(sample), counts_of_values)
    calibration = Calibration(_pooled_scale(total, count, mask, shrinkage), *table, mask.mask_hash)
    for scaled in rows_of(values):
        scaled[:] = calibration._neg_log10_p_of_scaled(scaled)
    return calibration, values


def own_fold_weight(weights: np.ndarray | None) -> float:
    """Weight of a control's own fold (see `calibrate`) for controls of these weights, (S,); None: they are equal.

    The fewer effective controls there are, the more a control near the patient weighs in its own scale.
    """
    if weights is None:
        return _OWN_FOLD_WEIGHT
    return _OWN_FOLD_WEIGHT * float(np.sqrt(effective_number(weights) / len(weights)))


def pooling_shrinkage(controls: float) -> float:
    """Weight of the whole brain's null scale in the scale of each voxel, for this (effective) number of controls."""
    return _POOLING_CONTROLS / (_POOLING_CONTROLS + controls)


def _pooled_scale(total: np.ndarray, count: np.ndarray, mask: VoxelMask, shrinkage: float) -> np.ndarray:
    """Root mean square at each voxel, pooled over neighbours and shrunk towards the whole brain's, (P,) float32."""
    whole = total.sum() / max(count.sum(), 1)
    smooth_total, smooth_count = mask.blurred(np.stack([total, count]), _POOLING_MM)
    # Where no control has brain nearby, use the scale of the whole brain.
    own = np.where(smooth_count > 1e-3, smooth_total / np.maximum(smooth_count, 1e-3), whole)
    return np.sqrt((1 - shrinkage) * own + shrinkage * whole).clip(_SMALLEST_SCALE).astype(np.float32)


def _tail_table(scaled: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Knots, -log10 p at the knots, and the slope beyond them, from a sample of scaled null scores (n,) and weights."""
    order = None if weights is None else np.argsort(scaled, kind="stable")
    pool = np.sort(scaled) if order is None else scaled[order]
    # Weight of the k highest values; k, if each weighs 1.
    reached = np.arange(1, len(pool) + 1) if weights is None else np.cumsum(weights[order][::-1])
    total = reached[-1]
    # At least 50 values, for a stable fit.
    in_tail = min(max(np.ceil(_TAIL * total), 50), total)
    start = -np.log10(in_tail / total)
    neg_log10_p = np.append(np.arange(0, start - _STEP / 2, _STEP), start)
    # k of n values are at least as high as the k-th highest.
    at = np.searchsorted(reached, np.ceil(total * 10.0**-neg_log10_p)).clip(0, len(pool) - 1)
    knots = pool[::-1][at].astype(np.float64)
    n_tail = int(np.searchsorted(reached, in_tail)) + 1
    # A part of the lowest value's weight may not belong to the tail.
    share = np.diff(np.minimum(reached[:n_tail], in_tail), prepend=0)[::-1]
    mean_excess = max(float(((pool[-n_tail:] - knots[-1]) * share).sum() / in_tail), _SMALLEST_SCALE)
    # Where knots tie, keep the first, which has the smallest -log10 p.
    first = np.append(True, np.diff(knots) > 0)
    return knots[first], neg_log10_p[first], float(1 / (mean_excess * np.log(10)))


def z_from_neg_log10_p(neg_log10_p: np.ndarray) -> np.ndarray:
    """Convert -log10 p to z-scores with the same upper-tail probability under a normal distribution; float32."""
    # Computed from log p, since p itself underflows.
    return -special.ndtri_exp(-np.maximum(neg_log10_p, 1e-6) * np.log(10)).astype(np.float32)


def require_enough_participants(train: Sequence[str]) -> None:
    """Check that there are enough participants for cross-validation.

    Parameters
    ----------
    train : sequence of str
        Keys of the training controls; a participant may have several scans.

    Raises
    ------
    UserError
        Fewer than `FEWEST_PARTICIPANTS` participants.
    """
    participants = count_participants(train)
    if participants < FEWEST_PARTICIPANTS:
        raise UserError(
            f"{counted(participants, 'training control')}, expected at least {FEWEST_PARTICIPANTS} for "
            "cross-validation. Add healthy scans of other participants, or lower data_manifests.held_out_share."
        )


def folds_of(participants: Sequence[str], folds: int, seed: int) -> list[np.ndarray]:
    """Split scans into random folds, grouped by participant.

    Parameters
    ----------
    participants : sequence of str
        Participant of each scan.
    folds : int
        Number of folds; at most one per participant.
    seed : int

    Returns
    -------
    list of ndarray
        Ascending indices of the scans of each fold; the folds have nearly the same number of participants.
    """
    names, participant = np.unique(participants, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return [np.flatnonzero(np.isin(participant, part)) for part in np.array_split(order, min(folds, len(names)))]
