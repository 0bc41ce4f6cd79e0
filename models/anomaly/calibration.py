"""Scores of any kind on one scale: how seldom a healthy brain scores as high.

A detector scores the controls it was fitted on too kindly. So the null scores come from cross-fitting: each control is
scored by a detector that has not seen it. Then in two steps:

1. *Spread.* Scores are divided by their own root mean square at the location, pooled over neighbours: where healthy
   brains differ much, a high score means little. In the divisor of a null score, its own fold counts half (`_OWN`).
2. *Tail.* The share of the null that reaches a value, over all locations and controls; above the highest thousandth
   by an exponential fitted to the excesses (peaks over threshold; Coles, "An Introduction to Statistical Modeling of
   Extreme Values", 2001, with shape 0).

What comes out is the *surprise*, -log10 p: comparable between detectors, and summable (Fisher's way to combine tests).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, special

from ...data_manifests.cohort.subject import participant_of_key
from ...data_manifests.errors import UserError
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..tensor_file import opened_tensors, write_tensors

FEWEST_PARTICIPANTS = 3
"""One is left out at a time, and two are what a variance needs."""
_TAIL = 1e-3
"""The share of the null to which the exponential is fitted."""
_STEP = 0.01
"""Between two knots of the table, in units of surprise."""
_VALUES_AT_ONCE = 8_000_000
"""Values of the null that are sorted; more are thinned."""
_LEAST_SPREAD = 1e-6
_OWN = 0.5
"""What a fold counts for in the spread that its own null scores are divided by. In full, a control that is wild
somewhere hides it, and unseen brains read too high. Not at all, it looks too wild, since the detectors that scored the
others have seen it, and unseen brains read too low. Half lies between; docs/maps.md tells what was measured."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """From scores to surprise.

    Attributes
    ----------
    spread : ndarray, (P,), float32
        What a score is divided by at each location.
    knots : ndarray, (K,), float64
        Ascending scores, after division.
    neg_log10_p_at : ndarray, (K,), float64
        -log10 of the share of healthy voxels that score as high, at each knot.
    slope : float
        Surprise per unit of score beyond the last knot.
    mask_hash : str
        Of the `VoxelMask` whose locations these are.
    """

    spread: np.ndarray
    knots: np.ndarray
    neg_log10_p_at: np.ndarray
    slope: float
    mask_hash: str

    def neg_log10_p(self, scores: np.ndarray) -> np.ndarray:
        """-log10 p of scores.

        Parameters
        ----------
        scores : ndarray, (..., P)
            Higher = more anomalous.

        Returns
        -------
        ndarray, (..., P), float32
            From 0; higher = seldomer. It rises with the score.
        """
        return self._neg_log10_p_of(np.asarray(scores, np.float64) / self.spread)

    def _neg_log10_p_of(self, ratio: np.ndarray) -> np.ndarray:
        beyond = np.maximum(ratio - self.knots[-1], 0) * self.slope
        return (np.interp(ratio, self.knots, self.neg_log10_p_at) + beyond).astype(np.float32)

    def z(self, scores: np.ndarray) -> np.ndarray:
        """The same as standard deviations of a normal distribution: p < .001 is z > 3.09."""
        return z_from_neg_log10_p(self.neg_log10_p(scores))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        tensors = {"spread": self.spread, "knots": self.knots, "neg_log10_p_at": self.neg_log10_p_at}
        return write_tensors(path, tensors, slope=repr(self.slope), mask_hash=self.mask_hash)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        with opened_tensors(path, "whole calibration") as file:
            spread = file.array("spread", "float32", 1)
            knots, neg_log10_p_at = (file.array(name, "float64", 1) for name in ("knots", "neg_log10_p_at"))
            if not spread.min() > 0:
                raise ValueError(f"a spread is {spread.min():g}, expected numbers above 0")
            if knots.shape != neg_log10_p_at.shape or neg_log10_p_at[0] < 0:
                raise ValueError("its table is not one of surprises")
            if not ((np.diff(knots) > 0).all() and (np.diff(neg_log10_p_at) > 0).all()):
                raise ValueError("its table does not rise")
            return cls(spread, knots, neg_log10_p_at, file.number("slope"), file.about["mask_hash"])


def calibrate(
    null: np.ndarray,
    inside: np.ndarray,
    folds: Sequence[np.ndarray],
    grid: VoxelMask,
    *,
    pooling_mm: float,
    shrinkage: float,
) -> tuple[Calibration, np.ndarray]:
    """Learn from the scores of controls.

    Parameters
    ----------
    null : ndarray, (S, P)
        Each control scored by a detector that has not seen it; may be memory-mapped.
    inside : ndarray of bool, (S, P)
        Where each control has brain; the rest is left out.
    folds : sequence of ndarray of int
        Which controls were left out together; two folds at least.
    grid : VoxelMask
    pooling_mm : float
        Standard deviation of the Gaussian over which the spread is pooled.
    shrinkage : float in [0, 1]
        Weight of the whole brain's spread in each location's.

    Returns
    -------
    Calibration
        Its spread is that of all controls, for brains that are none of them.
    ndarray, (S, P), float32
        Surprises of the controls themselves, each by a spread in which its own fold counts half.

    Raises
    ------
    UserError
        Null scores that are not finite, or all alike.
    """
    if null.shape != inside.shape or null.shape[1] != grid.size:
        raise ValueError(f"null {null.shape} and brains {inside.shape}, expected (subjects, {grid.size}) for both")
    total, count = _sums(null, inside)
    if not np.isfinite(total.sum()):
        raise UserError("Calibration: scores of controls are not finite, expected finite ones. Fit the model again.")
    if not total.sum() > 0:
        raise UserError(
            "Calibration: the controls' scores are all 0, expected some that differ. Are the controls one and the same "
            "scan? Otherwise train again."
        )
    sigma_vox = pooling_mm / grid.grid.spacing_mm
    null_neg_log10_p = np.empty(null.shape, np.float32)
    for fold in folds:
        own_total, own_count = _sums(null[fold], inside[fold])
        less = 1 - _OWN
        spread = _spread(total - less * own_total, count - less * own_count, grid, sigma_vox, shrinkage)
        null_neg_log10_p[fold] = null[fold] / spread
    table = _tail_table(null_neg_log10_p, inside)
    calibration = Calibration(_spread(total, count, grid, sigma_vox, shrinkage), *table, grid.mask_hash)
    for row in null_neg_log10_p:
        row[:] = calibration._neg_log10_p_of(row)
    return calibration, null_neg_log10_p


def _sums(scores: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of squares at each location, and over how many brains, (P,)."""
    total, count = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for row, brain in zip(scores, inside, strict=True):
        total += np.where(brain, np.square(row, dtype=np.float64), 0)
        count += brain
    return total, count


def _spread(
    total: np.ndarray, count: np.ndarray, grid: VoxelMask, sigma_vox: np.ndarray, shrinkage: float
) -> np.ndarray:
    """Root mean square at each location, pooled over neighbours and drawn towards the brain's, (P,) float32."""
    whole = total.sum() / max(count.sum(), 1)
    smooth_total, smooth_count = (
        grid.transform(ndimage.gaussian_filter(grid.inverse_transform(part), sigma_vox)) for part in (total, count)
    )
    # Where nobody has brain nearby, the whole brain's has to do.
    own = np.where(smooth_count > 1e-3, smooth_total / np.maximum(smooth_count, 1e-3), whole)
    return np.sqrt((1 - shrinkage) * own + shrinkage * whole).clip(_LEAST_SPREAD).astype(np.float32)


def _tail_table(ratio: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    thinned = slice(None, None, 1 + ratio.size // _VALUES_AT_ONCE)
    pool = np.sort(
        np.concatenate([row[thinned][brain[thinned]] for row, brain in zip(ratio, inside, strict=True)]).astype(
            np.float64
        )
    )
    # As many as the highest share holds, and never so few that the fit hangs on a handful.
    n_tail = min(max(int(np.ceil(_TAIL * len(pool))), 50), len(pool))
    start = -np.log10(n_tail / len(pool))
    neg_log10_p = np.append(np.arange(0, start - _STEP / 2, _STEP), start)
    # The k-th highest value is reached by k of n.
    knots = pool[::-1][(np.ceil(len(pool) * 10.0**-neg_log10_p).astype(int) - 1).clip(0)]
    mean_excess = max(float((pool[-n_tail:] - knots[-1]).mean()), _LEAST_SPREAD)
    # Where values tie, the rarest reading would be too bold: keep the first knot of each.
    first = np.append(True, np.diff(knots) > 0)
    return knots[first], neg_log10_p[first], float(1 / (mean_excess * np.log(10)))


def z_from_neg_log10_p(neg_log10_p: np.ndarray) -> np.ndarray:
    """Standard deviations of a normal distribution whose upper tail has ``p = 10 ** -surprise``; float32."""
    # The logarithm keeps its digits where p itself would be 0.
    return -special.ndtri_exp(-np.maximum(neg_log10_p, 1e-6) * np.log(10)).astype(np.float32)


def require_enough_participants(train: Sequence[str]) -> None:
    """Judge the keys of the training controls, which may be several scans of one person.

    Raises
    ------
    UserError
        Too few people to leave one out.
    """
    participants = len({participant_of_key(key) for key in train})
    if participants < FEWEST_PARTICIPANTS:
        raise UserError(
            f"{participants} training controls, expected at least {FEWEST_PARTICIPANTS}: each is scored by detectors "
            "fitted on others. Add healthy scans, or lower data_manifests.held_out_share."
        )


def folds_of(participants: Sequence[str], folds: int, seed: int) -> list[np.ndarray]:
    """Split scans into random parts, at most one a person; a person's scans stay together.

    Returns
    -------
    list of ndarray
        Indices of the scans, ascending; the parts hold nearly the same number of persons.
    """
    names, participant = np.unique(participants, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return [np.flatnonzero(np.isin(participant, part)) for part in np.array_split(order, min(folds, len(names)))]
