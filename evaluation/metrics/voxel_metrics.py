"""Voxel-wise metrics from rank histograms.

The definitions follow scikit-learn and the cited papers. Scores are `higher = more anomalous`, a threshold ``t`` flags
every voxel with a score of at least ``t``, and every distinct score is a threshold.

One histogram is computed per scan. It does not use equal-width bins, since a single outlier could put all other voxels
into one bin; truncated mantissas would do the same to maps with a large offset. Voxels share a bin only by rank: the
highest 131,072 healthy voxels of a scan get one bin each, a lower bin holds at most 1/131,072 of the healthy voxels at
or above it, and no bin spans the score of a lesion voxel of the same scan. The metrics of one scan are therefore exact,
false-positive counts at any other threshold have a relative error of at most 8e-6, and monotone transformations of the
maps change nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from . import kernels
from .bootstrap import Estimate

KEPT_ONE_BY_ONE = 2**17
AUPIMO_FPR = 1e-5, 1e-4
"""False-positive rates over which AUPIMO averages."""
NO_LESION_VOXEL = "no lesion voxel in the evaluation mask"
ONLY_LESION_VOXELS = "no healthy voxel in the evaluation mask"


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Histogram of the scores of healthy and of lesion voxels, with strictly ascending values.

    Attributes
    ----------
    healthy_scores : ndarray of float32, (H,)
    healthy_counts : ndarray of int32, (H,)
    lesion_scores : ndarray of float32, (L,)
    lesion_counts : ndarray of int32, (L,)
    lesion_weights : ndarray of float64, (L,)
        Sum of 1 / (voxels of their lesion) over the lesion voxels at this score, for the per-region overlap.
    """

    healthy_scores: np.ndarray
    healthy_counts: np.ndarray
    lesion_scores: np.ndarray
    lesion_counts: np.ndarray
    lesion_weights: np.ndarray

    @classmethod
    def from_voxels(cls, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> "ScoreHistogram":
        """Compute the histogram of one scan.

        Parameters
        ----------
        scores : ndarray of float32, (N,)
            Without NaN; -inf marks voxels without a score.
        truth : ndarray of bool, (N,)
            True in lesions.
        weights : ndarray, (number of lesion voxels,), optional
            Weight of each lesion voxel in the per-region overlap.
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
        """Number of healthy voxels."""
        return int(self.healthy_counts.sum(dtype=np.int64))

    @property
    def n_lesion(self) -> int:
        """Number of lesion voxels."""
        return int(self.lesion_counts.sum(dtype=np.int64))

    def healthy_quantile(self, share: float) -> float:
        """Quantile of the healthy scores; the histogram must hold healthy voxels."""
        reached = np.searchsorted(np.cumsum(self.healthy_counts), share * self.n_healthy)
        return float(self.healthy_scores[min(reached, len(self.healthy_scores) - 1)])

    def flagged(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the healthy and the lesion voxels with a score of at least each threshold."""
        return (
            _at_or_above(self.healthy_scores, self.healthy_counts, thresholds),
            _at_or_above(self.lesion_scores, self.lesion_counts, thresholds),
        )


@dataclass(frozen=True, eq=False)
class RankCounts:
    """Voxel counts over bins in ascending order of score, from which the voxel-wise metrics are computed.

    Leading dimensions, if any, are bootstrap samples or subjects.

    Attributes
    ----------
    healthy, lesion, lesion_weights : ndarray of float64, (..., B)
    lowest_scores : ndarray of float32, (B,)
        Threshold that flags a bin and all bins above it.
    """

    healthy: np.ndarray
    lesion: np.ndarray
    lesion_weights: np.ndarray
    lowest_scores: np.ndarray

    @classmethod
    def empty(cls, edges: np.ndarray, rows: int | None = None) -> "RankCounts":
        """Return zero counts with one row of bins, or with `rows` rows."""
        bins = 2 * len(edges) + 1
        lowest = np.empty(bins, dtype=np.float32)
        lowest[1::2] = edges
        lowest[0] = -np.inf
        lowest[2::2] = np.nextafter(edges, np.float32(np.inf))
        shape = (bins,) if rows is None else (rows, bins)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), lowest)

    def add(self, histogram: ScoreHistogram, edges: np.ndarray, row: int | None = None) -> None:
        """Add the voxels of one scan, to the given row if there are rows."""
        healthy, lesion, weights = (
            part if row is None else part[row] for part in (self.healthy, self.lesion, self.lesion_weights)
        )
        kernels.add_between(edges, histogram.healthy_scores, histogram.healthy_counts, healthy)
        kernels.add_between(edges, histogram.lesion_scores, histogram.lesion_counts, lesion)
        kernels.add_between(edges, histogram.lesion_scores, histogram.lesion_weights, weights)

    def reweighted(self, weights: np.ndarray) -> "RankCounts":
        """Return weighted sums over subjects (first dimension) for each row of `weights`, (draws, S)."""
        return RankCounts(
            weights @ self.healthy, weights @ self.lesion, weights @ self.lesion_weights, self.lowest_scores
        )


def common_edges(lesion_scores: Iterable[np.ndarray], every: int = 1) -> np.ndarray:
    """Bin edges at the scores of all lesion voxels; recall and best Dice do not change in between.

    Parameters
    ----------
    lesion_scores : iterable of ndarray
        `ScoreHistogram.lesion_scores` of each scan.
    every : int
        Use only every k-th score of each scan, from the highest down. With K edges in total, a bin then holds about 1/K
        of the lesion voxels, which changes the AUROC by at most half of that.

    Returns
    -------
    ndarray of float32
        Strictly ascending.
    """
    chosen = np.concatenate([np.zeros(0, np.float32), *(scores[::-every] for scores in lesion_scores)])
    ordered, places = kernels.sorted_order(chosen, False)
    return kernels.distinct(ordered, places, np.zeros(0))[0]


def rank_counts(histograms: Iterable[ScoreHistogram], edges: np.ndarray) -> RankCounts:
    """Pool the voxels of several scans on common bins: the `edges` (from `common_edges`) and the gaps between them."""
    counts = RankCounts.empty(edges)
    for histogram in histograms:
        counts.add(histogram, edges)
    return counts


def auroc(counts: RankCounts) -> np.ndarray:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-)/2; NaN if a class is missing."""
    return _by_row(kernels.auroc_rows, counts.healthy, counts.lesion)


def area_below_fpr(counts: RankCounts, limit: float, *, per_region: bool = False) -> np.ndarray:
    """Area under the ROC curve from FPR 0 to `limit`, divided by `limit`; interpolated at `limit`.

    Chance level is ``limit / 2``. With `per_region` the true-positive rate is the mean recall over lesions, which gives
    the area under the per-region-overlap curve (AUPRO; Bergmann et al., CVPR 2020).
    """
    hits = counts.lesion_weights if per_region else counts.lesion
    return _by_row(kernels.area_rows, counts.healthy, hits, float(limit))


def mcclish(normalised: np.ndarray, limit: float) -> np.ndarray:
    """Rescale a partial area so that chance level is 0.5 and a perfect map has 1 (McClish 1989)."""
    area, chance = normalised * limit, limit**2 / 2
    return (1 + (area - chance) / (limit - chance)) / 2


def average_precision(counts: RankCounts) -> np.ndarray:
    """Average precision: sum of precision times recall step; ties form one step, no interpolation."""
    return _by_row(kernels.average_precision_rows, counts.healthy, counts.lesion)


def prevalence(counts: RankCounts) -> np.ndarray:
    """Fraction of lesion voxels, the chance level of the average precision."""
    lesion = counts.lesion.sum(-1)
    return _ratio(lesion, lesion + counts.healthy.sum(-1))


def best_dice(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """Best Dice over all thresholds and its threshold. This is an oracle: the threshold is chosen on the truth.

    Dice of flagged and true elements is their F1, so that this is also the F1-max.
    """
    rows, shape = np.atleast_2d(counts.healthy), counts.healthy.shape[:-1]
    best, where = kernels.best_dice_rows(rows, np.atleast_2d(counts.lesion))
    return best.reshape(shape), counts.lowest_scores[where].reshape(shape)


def dice_by_threshold(counts: RankCounts) -> np.ndarray:
    """Dice at the lowest score of each bin, (..., B); NaN without lesion voxels."""
    true, false = (np.cumsum(part[..., ::-1], axis=-1)[..., ::-1] for part in (counts.lesion, counts.healthy))
    positives = true[..., :1]
    return np.where(positives > 0, _ratio(2 * true, true + false + positives), np.nan)


def false_positive_rates(healthy: np.ndarray) -> np.ndarray:
    """False-positive rate at the lowest score of each bin, (..., B); NaN without healthy voxels."""
    flagged = np.cumsum(healthy[..., ::-1], axis=-1)[..., ::-1]
    return _ratio(flagged, flagged[..., :1])


def aupimo_credit(fpr: np.ndarray) -> np.ndarray:
    """Contribution (0 to 1) to AUPIMO of a lesion voxel that is flagged from this false-positive rate on.

    AUPIMO (Bertoldo et al., BMVC 2024) is the recall of one scan averaged over log FPR within `AUPIMO_FPR`, where the
    FPR is the mean over healthy scans only. Since a voxel is recalled at every FPR above its own, the average over
    thresholds equals an average over voxels: the mean of ``log(high / fpr) / log(high / low)`` with the FPR clipped to
    the limits.
    """
    low, high = AUPIMO_FPR
    return np.log(high / np.clip(fpr, low, high)) / np.log(high / low)


def roc_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve: false- and true-positive rates from (0, 0) to (1, 1)."""
    fp, tp = _curve(counts.healthy), _curve(counts.lesion)
    return _ratio(fp, fp[..., -1:]), _ratio(tp, tp[..., -1:])


def pro_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """PRO curve: false-positive rate and per-region overlap (mean recall over lesions)."""
    fp, overlap = _curve(counts.healthy), _curve(counts.lesion_weights)
    return _ratio(fp, fp[..., -1:]), _ratio(overlap, overlap[..., -1:])


def precision_recall_curve(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold that flags at least one voxel, from the highest threshold down."""
    tp, fp = _curve(counts.lesion)[1:], _curve(counts.healthy)[1:]
    some = tp + fp > 0
    return tp[some] / tp[-1], tp[some] / (tp + fp)[some]


def why_undefined(counts: RankCounts, *, needs_healthy: bool = True) -> str | None:
    """Return the reason why the metrics of these voxels are undefined; None if they are defined."""
    if counts.lesion.sum() == 0:
        return NO_LESION_VOXEL
    if needs_healthy and counts.healthy.sum() == 0:
        return ONLY_LESION_VOXELS
    return None


def as_estimate(value: np.ndarray | float, counts: RankCounts, *, needs_healthy: bool = True) -> Estimate:
    """Return a value as an `Estimate`, undefined with a reason if these voxels do not define it."""
    why_none = why_undefined(counts, needs_healthy=needs_healthy)
    return Estimate.undefined(why_none) if why_none else Estimate(float(value))


def _at_or_above(values: np.ndarray, counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    above = np.append(np.cumsum(counts[::-1], dtype=np.int64)[::-1], 0)
    return above[np.searchsorted(values, thresholds, side="left")]


def _curve(counts: np.ndarray) -> np.ndarray:
    """Cumulative counts from the highest bin down, with a leading 0: (..., B + 1)."""
    cumulated = np.cumsum(counts[..., ::-1], axis=-1)
    return np.concatenate([np.zeros_like(cumulated[..., :1]), cumulated], axis=-1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _by_row(kernel: Callable, healthy: np.ndarray, hits: np.ndarray, *limits: float) -> np.ndarray:
    values = kernel(np.atleast_2d(healthy), np.atleast_2d(hits), *limits)
    return values.reshape(healthy.shape[:-1])
