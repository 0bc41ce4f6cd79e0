"""Voxel-wise metrics from histograms of ranks.

All definitions are those of the field's papers and of scikit-learn; scores are `higher = more anomalous`, a threshold
``t`` flags every voxel with a score of at least ``t``, and every distinct score is a threshold.

A histogram is made once a scan and holds *values*, never equal-width bins: binning between a minimum and a maximum
lets one outlying voxel push everybody else into one bin, and a fixed number of mantissa bits does the same to maps
with a large offset. Here voxels share a bin only by *rank*: the highest 131,072 healthy voxels of a scan are kept one
by one, below that a bin holds at most 1/131,072 of the healthy voxels at or above it, and no bin reaches over the
score of a lesion voxel of the same scan. So the figures of one scan are exact, counts of false positives are right
within 8e-6 of themselves for any other threshold, and no monotone change of the maps changes anything.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from . import kernels
from .bootstrap import Estimate

KEPT_ONE_BY_ONE = 2**17
NO_LESION_VOXEL = "no lesion voxel in the evaluation mask"
ONLY_LESION_VOXELS = "no healthy voxel in the evaluation mask"


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """How often each score occurs, for healthy and for lesion voxels. Values ascend strictly.

    Attributes
    ----------
    healthy_scores : ndarray of float32, (H,)
    healthy_counts : ndarray of int32, (H,)
    lesion_scores : ndarray of float32, (L,)
    lesion_counts : ndarray of int32, (L,)
    lesion_weights : ndarray of float64, (L,)
        Sum over the lesion voxels at this score of 1 / (voxels of their lesion): what the per-region overlap adds up.
    """

    healthy_scores: np.ndarray
    healthy_counts: np.ndarray
    lesion_scores: np.ndarray
    lesion_counts: np.ndarray
    lesion_weights: np.ndarray

    @classmethod
    def from_voxels(cls, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> "ScoreHistogram":
        """Count the voxels of one scan.

        Parameters
        ----------
        scores : ndarray of float32, (N,)
            No NaN; -inf marks voxels that the map does not cover.
        truth : ndarray of bool, (N,)
            True in lesions.
        weights : ndarray, (number of lesion voxels,), optional
            Of each lesion voxel in the per-region overlap.
        """
        scores = np.asarray(scores, dtype=np.float32)
        truth = np.asarray(truth, dtype=bool)
        ordered, places = kernels.sorted_order(scores[truth], True)
        weights = np.zeros(0) if weights is None else np.asarray(weights, dtype=np.float64)
        lesion_scores, lesion_counts, sums = kernels.distinct(ordered, places, weights)
        ordered, _ = kernels.sorted_order(scores[~truth], False)
        healthy_scores, healthy_counts = kernels.counted_by_rank(ordered, lesion_scores, KEPT_ONE_BY_ONE)
        return cls(healthy_scores, healthy_counts, lesion_scores, lesion_counts, sums)

    @property
    def n_healthy(self) -> int:
        return int(self.healthy_counts.sum(dtype=np.int64))

    @property
    def n_lesion(self) -> int:
        return int(self.lesion_counts.sum(dtype=np.int64))

    def healthy_quantile(self, share: float) -> float:
        """The score below which so large a share of the healthy voxels lies; of a histogram with some."""
        reached = np.searchsorted(np.cumsum(self.healthy_counts), share * self.n_healthy)
        return float(self.healthy_scores[min(reached, len(self.healthy_scores) - 1)])

    def flagged(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of healthy and of lesion voxels with a score of at least each threshold."""
        return (
            _at_or_above(self.healthy_scores, self.healthy_counts, thresholds),
            _at_or_above(self.lesion_scores, self.lesion_counts, thresholds),
        )


@dataclass(frozen=True, eq=False)
class RankCounts:
    """Counts over bins in ascending order of score: what every voxel metric is computed from.

    Leading dimensions, if any, are bootstrap draws or subjects.

    Attributes
    ----------
    healthy, lesion, lesion_weights : ndarray of float64, (..., B)
    lowest_scores : ndarray of float32, (B,)
        The threshold that flags a bin and all above it.
    """

    healthy: np.ndarray
    lesion: np.ndarray
    lesion_weights: np.ndarray
    lowest_scores: np.ndarray

    @classmethod
    def empty(cls, edges: np.ndarray, rows: int | None = None) -> "RankCounts":
        """No voxel yet: one row of bins, or so many."""
        bins = 2 * len(edges) + 1
        lowest = np.empty(bins, dtype=np.float32)
        lowest[1::2] = edges
        lowest[0] = -np.inf
        lowest[2::2] = np.nextafter(edges, np.float32(np.inf))
        shape = (bins,) if rows is None else (rows, bins)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), lowest)

    def add(self, histogram: ScoreHistogram, edges: np.ndarray, row: int | None = None) -> None:
        """Count the voxels of one scan, in one of the rows if there are rows."""
        healthy, lesion, weights = (
            part if row is None else part[row] for part in (self.healthy, self.lesion, self.lesion_weights)
        )
        kernels.add_between(edges, histogram.healthy_scores, histogram.healthy_counts, healthy)
        kernels.add_between(edges, histogram.lesion_scores, histogram.lesion_counts, lesion)
        kernels.add_between(edges, histogram.lesion_scores, histogram.lesion_weights, weights)

    def reweighted(self, weights: np.ndarray) -> "RankCounts":
        """Sum over subjects (the first dimension) with each row of `weights`, (draws, S)."""
        return RankCounts(
            weights @ self.healthy, weights @ self.lesion, weights @ self.lesion_weights, self.lowest_scores
        )


def common_edges(lesion_scores: Iterable[np.ndarray], every: int = 1) -> np.ndarray:
    """The scores of all scans' lesion voxels: between two of them neither the recall nor the best Dice changes.

    Parameters
    ----------
    lesion_scores : iterable of ndarray
        `ScoreHistogram.lesion_scores` of each scan.
    every : int
        Only every k-th score of each scan is an edge, from the highest down. With K edges in all, a bin then holds
        about 1/K of the lesion voxels, which moves an AUROC by at most half as much.

    Returns
    -------
    ndarray of float32
        Ascending strictly.
    """
    chosen = np.concatenate([np.zeros(0, np.float32), *(scores[::-every] for scores in lesion_scores)])
    ordered, places = kernels.sorted_order(chosen, False)
    return kernels.distinct(ordered, places, np.zeros(0))[0]


def rank_counts(histograms: Iterable[ScoreHistogram], edges: np.ndarray) -> RankCounts:
    """All voxels of some scans on common bins: `edges` (from `common_edges`) themselves, and the gaps between them."""
    counts = RankCounts.empty(edges)
    for histogram in histograms:
        counts.add(histogram, edges)
    return counts


def auroc(counts: RankCounts) -> np.ndarray:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-)/2. NaN where one class is missing."""
    return _by_row(kernels.auroc_rows, counts.healthy, counts.lesion)


def area_below_fpr(counts: RankCounts, limit: float, *, per_region: bool = False) -> np.ndarray:
    """Area under the ROC curve from FPR 0 to `limit`, divided by `limit`; interpolated at `limit`.

    A random map has ``limit / 2``. With `per_region` the true-positive rate is the mean over lesions of their share
    found, which makes it the area under the per-region-overlap curve (AUPRO; Bergmann et al., CVPR 2020).
    """
    hits = counts.lesion_weights if per_region else counts.lesion
    return _by_row(kernels.area_rows, counts.healthy, hits, float(limit))


def mcclish(normalised: np.ndarray, limit: float) -> np.ndarray:
    """Rescale an area up to `limit` so that a random map has 0.5 and a perfect one 1 (McClish 1989)."""
    area, chance = normalised * limit, limit**2 / 2
    return (1 + (area - chance) / (limit - chance)) / 2


def average_precision(counts: RankCounts) -> np.ndarray:
    """Sum of precision times step of recall over thresholds; ties in one step, no interpolation."""
    return _by_row(kernels.average_precision_rows, counts.healthy, counts.lesion)


def prevalence(counts: RankCounts) -> np.ndarray:
    """Share of lesion voxels: the average precision of a random map."""
    lesion = counts.lesion.sum(-1)
    return _ratio(lesion, lesion + counts.healthy.sum(-1))


def best_dice(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """The best Dice over all thresholds, and the threshold: an ORACLE, since it is chosen on the truth."""
    rows, shape = np.atleast_2d(counts.healthy), counts.healthy.shape[:-1]
    best, where = kernels.best_dice_rows(rows, np.atleast_2d(counts.lesion))
    return best.reshape(shape), counts.lowest_scores[where].reshape(shape)


def false_positive_rates(healthy: np.ndarray) -> np.ndarray:
    """Share of the healthy voxels flagged at the lowest score of each bin, (..., B); NaN where there are none."""
    flagged = np.cumsum(healthy[..., ::-1], axis=-1)[..., ::-1]
    return _ratio(flagged, flagged[..., :1])


def aupimo_credit(fpr: np.ndarray, low: float = 1e-5, high: float = 1e-4) -> np.ndarray:
    """What a lesion voxel that is flagged from this false-positive rate on adds to AUPIMO, 0 to 1.

    AUPIMO (Bertoldo et al., BMVC 2024) is the recall of one scan averaged over the logarithm of the FPR from `low` to
    `high`, the FPR being the mean over healthy scans alone. A voxel is recalled at every FPR from its own on, so the
    average over thresholds is one over voxels: mean of ``log(high / fpr) / log(high / low)``, the FPR held in the
    limits.
    """
    return np.log(high / np.clip(fpr, low, high)) / np.log(high / low)


def roc_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rate from (0, 0) to (1, 1)."""
    fp, tp = _curve(counts.healthy), _curve(counts.lesion)
    return _ratio(fp, fp[..., -1:]), _ratio(tp, tp[..., -1:])


def pro_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate and per-region overlap: the mean over lesions of their share found."""
    fp, overlap = _curve(counts.healthy), _curve(counts.lesion_weights)
    return _ratio(fp, fp[..., -1:]), _ratio(overlap, overlap[..., -1:])


def precision_recall_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold that flags something, from the highest threshold down."""
    tp, fp = _curve(counts.lesion)[1:], _curve(counts.healthy)[1:]
    some = tp + fp > 0
    return tp[some] / tp[-1], tp[some] / (tp + fp)[some]


def why_undefined(counts: RankCounts, *, needs_healthy: bool = True) -> str | None:
    """Why these voxels define no figure; None where they do."""
    if counts.lesion.sum() == 0:
        return NO_LESION_VOXEL
    if needs_healthy and counts.healthy.sum() == 0:
        return ONLY_LESION_VOXELS
    return None


def as_estimate(value: np.ndarray | float, counts: RankCounts, *, needs_healthy: bool = True) -> Estimate:
    """One number as an `Estimate`, or the reason why these voxels do not define it."""
    why_none = why_undefined(counts, needs_healthy=needs_healthy)
    return Estimate.undefined(why_none) if why_none else Estimate(float(value))


def _at_or_above(values: np.ndarray, counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    above = np.append(np.cumsum(counts[::-1], dtype=np.int64)[::-1], 0)
    return above[np.searchsorted(values, thresholds, side="left")]


def _curve(counts: np.ndarray) -> np.ndarray:
    """Cumulated from the highest bin down, with a leading 0: (..., B + 1)."""
    cumulated = np.cumsum(counts[..., ::-1], axis=-1)
    return np.concatenate([np.zeros_like(cumulated[..., :1]), cumulated], axis=-1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _by_row(kernel: Callable, healthy: np.ndarray, hits: np.ndarray, *limits: float) -> np.ndarray:
    values = kernel(np.atleast_2d(healthy), np.atleast_2d(hits), *limits)
    return values.reshape(healthy.shape[:-1])
