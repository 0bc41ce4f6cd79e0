"""Dice at thresholds that flag a fixed share of the voxels of healthy scans, as in UAD-IMAG.

The threshold is set on the healthy scans of the cohort, without using any lesion (Frotscher et al., "Deep Unsupervised
Anomaly Detection in Brain Imaging", arXiv 2512.01534, 2025). Every bootstrap sample sets its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.bootstrap import Measure, ratio
from ..metrics.voxel_metrics import ScoreHistogram
from .subject_scores import StoredCurves, SubjectCurves, SubjectScores
from .voxel_measures import NO_HEALTHY, NO_PATIENT

HEALTHY_FPRS: Mapping[str, float] = {
    "dice_healthy_fpr00169_per_subject_mean": 0.00169,
    "dice_healthy_fpr01_per_subject_mean": 0.01,
}
"""Share of flagged voxels in healthy scans, by the name of the metric."""


@dataclass(frozen=True, eq=False)
class DiceAtHealthyRates:
    """Dice of S subjects at thresholds set on healthy scans, in the cohort and in each of D bootstrap samples.

    Attributes
    ----------
    dice : mapping from name to ndarray, (S, 1 + D)
        By the names of `HEALTHY_FPRS`; NaN for subjects without lesions.
    why_none : mapping from name to str
        Reason why a metric is undefined; empty if it is defined.
    """

    dice: Mapping[str, np.ndarray]
    why_none: Mapping[str, str]

    @classmethod
    def from_scores(cls, known: Sequence[SubjectScores], weights: np.ndarray) -> "DiceAtHealthyRates":
        """Set the thresholds and compute Dice; `weights`, (1 + D, S), are those of `resample_subjects`."""
        healthy = np.array([s.is_healthy for s in known], dtype=bool)
        voxels = sum(s.n_voxels for s in known if s.is_healthy)
        why_none, thresholds = {}, {}
        for name, limit in HEALTHY_FPRS.items():
            why_none[name] = NO_HEALTHY if not healthy.any() else ""
            if 0 < voxels * limit < 1:
                fewest = int(np.ceil(1 / limit))
                why_none[name] = f"fewer than {fewest} healthy voxels do not resolve a false-positive rate of {limit}"
            if not why_none[name]:
                scans = [s.curves for s in known if s.is_healthy]
                thresholds[name] = thresholds_at_rate(scans, weights[:, healthy], limit)
        dice = {name: np.full((len(known), len(weights)), np.nan) for name in HEALTHY_FPRS}
        for row, subject in enumerate(known):
            if subject.has_lesions and thresholds:
                histogram = subject.histogram
                for name, own in thresholds.items():
                    false, true = histogram.flagged(own)
                    dice[name][row] = 2 * true / (true + false + subject.n_lesion)
        return cls(dice, why_none)

    def measures(self, rows: np.ndarray, weights: np.ndarray) -> dict[str, Measure]:
        """Mean Dice over some of the subjects, with the weights of these."""
        measures = {}
        for name, dice in self.dice.items():
            own = dice[rows]
            defined = np.isfinite(own)
            n = int(defined[:, 0].sum())
            why_none = self.why_none[name] or NO_PATIENT
            measures[name] = ratio(np.where(defined, own, 0), defined, weights, n=n, subjects=n, why_none=why_none)
        return measures


def thresholds_at_rate(scans: Sequence[SubjectCurves | StoredCurves], weights: np.ndarray, limit: float) -> np.ndarray:
    """Lowest threshold at which at most a share of the healthy voxels is flagged.

    Parameters
    ----------
    scans : sequence of H SubjectCurves or StoredCurves
        Of healthy scans. Stored histograms are read one at a time.
    weights : ndarray, (T, H)
        How often each scan counts, for each of T thresholds.
    limit : float
        Highest share of the voxels, pooled over the scans.

    Returns
    -------
    ndarray of float32, (T,)
    """
    # In a mixture of scans, the threshold is no lower than the lowest of the scans' own.
    once = np.ones((1, 1))
    own = [_search([_Tail.above(scan.histogram, _LOWEST_RANK)], once, limit, _LOWEST_RANK)[0] for scan in scans]
    low = int(min(own)) - 1
    return _number_of(_search([_Tail.above(scan.histogram, low) for scan in scans], weights, limit, low))


@dataclass(frozen=True, eq=False)
class _Tail:
    """Highest scores of a healthy scan, how many voxels reach each of them (and 0), and the number of all voxels."""

    scores: np.ndarray
    reached_by: np.ndarray
    voxels: int

    @classmethod
    def above(cls, histogram: ScoreHistogram, rank: int) -> "_Tail":
        """Scores from this rank on."""
        first = np.searchsorted(histogram.healthy_scores, _number_of(np.array(rank)))
        reached_by = np.cumsum(histogram.healthy_counts[first:][::-1], dtype=np.int64)[::-1]
        return cls(histogram.healthy_scores[first:].copy(), np.append(reached_by, 0), histogram.n_healthy)

    def flagged(self, thresholds: np.ndarray) -> np.ndarray:
        """Voxels with a score of at least each threshold."""
        return self.reached_by[np.searchsorted(self.scores, thresholds)]


def _search(tails: Sequence[_Tail], weights: np.ndarray, limit: float, low: int) -> np.ndarray:
    """Ranks of the thresholds, by bisection over all float32 numbers; too many voxels are flagged at rank `low`."""
    # A share such as .01 of 300 voxels is to allow three of them, in spite of rounding.
    allowed = limit * (1 + 1e-12) * (weights @ np.array([tail.voxels for tail in tails], dtype=np.float64))
    below, reached = np.full(len(weights), low), np.full(len(weights), -_LOWEST_RANK)
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        at = _number_of(middle)
        flagged = sum(weight * tail.flagged(at) for weight, tail in zip(weights.T, tails, strict=True))
        enough = flagged <= allowed
        reached, below = np.where(enough, middle, reached), np.where(enough, below, middle)
    return reached


_LOWEST_RANK = -int(np.array(np.inf, np.float32).view(np.int32))
"""Rank of minus infinity among all float32 numbers in ascending order; the rank of 0 is 0."""


def _number_of(ranks: np.ndarray) -> np.ndarray:
    """Numbers with these ranks: the bit patterns of positive floats ascend with their value."""
    return np.where(ranks < 0, -1, 1).astype(np.float32) * np.abs(ranks).astype(np.int32).view(np.float32)
