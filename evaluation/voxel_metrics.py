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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Estimate

KEPT_ONE_BY_ONE = 2**17
NO_LESION_VOXEL = "no lesion voxel in the evaluation mask"
ONLY_LESION_VOXELS = "no healthy voxel in the evaluation mask"


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """How often each score occurs, for healthy and for lesion voxels. Values ascend strictly.

    Attributes
    ----------
    healthy_scores : ndarray of float32, (H,)
    healthy_counts : ndarray of int64, (H,)
    lesion_scores : ndarray of float32, (L,)
    lesion_counts : ndarray of int64, (L,)
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
        weights : ndarray, (N,), optional
            Weight of each lesion voxel in the per-region overlap.
        """
        scores = np.asarray(scores, dtype=np.float32)
        truth = np.asarray(truth, dtype=bool)
        lesion_scores, inverse, lesion_counts = np.unique(scores[truth], return_inverse=True, return_counts=True)
        sums = np.zeros(len(lesion_scores))
        if weights is not None:
            sums = np.bincount(inverse, weights=weights[truth], minlength=len(lesion_scores))
        healthy_scores, healthy_counts = _counted_by_rank(scores[~truth], lesion_scores)
        return cls(healthy_scores, healthy_counts, lesion_scores, lesion_counts.astype(np.int64), sums)

    @property
    def n_healthy(self) -> int:
        return int(self.healthy_counts.sum())

    @property
    def n_lesion(self) -> int:
        return int(self.lesion_counts.sum())

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

    def reweighted(self, weights: np.ndarray) -> "RankCounts":
        """Sum over subjects (the first dimension) with each row of `weights`, (draws, S)."""
        return RankCounts(
            weights @ self.healthy, weights @ self.lesion, weights @ self.lesion_weights, self.lowest_scores
        )


def rank_counts(histograms: Sequence[ScoreHistogram], *, most_edges: int, pooled: bool) -> RankCounts:
    """Put scans on common bins: the scores of lesion voxels, and the gaps between them.

    Nothing is lost by that as long as there are at most `most_edges` different lesion scores: between two of them
    neither the recall nor the best Dice changes. With more, every k-th is an edge, and a bin then holds less than
    1/`most_edges` of the lesion voxels, which moves an AUROC by at most half as much.

    Parameters
    ----------
    histograms : sequence of ScoreHistogram
    most_edges : int
    pooled : bool
        Whether to sum over the scans, or to keep one row for each.
    """
    edges = np.unique(np.concatenate([h.lesion_scores for h in histograms])) if histograms else np.zeros(0, np.float32)
    if len(edges) > most_edges:
        edges = edges[np.unique(np.linspace(0, len(edges) - 1, most_edges).astype(np.int64))]
    n_bins = 2 * len(edges) + 1
    rows = 1 if pooled else len(histograms)
    counts = np.zeros((3, rows, n_bins))
    for number, histogram in enumerate(histograms):
        row = 0 if pooled else number
        healthy_bins = _bins(edges, histogram.healthy_scores)
        lesion_bins = _bins(edges, histogram.lesion_scores)
        counts[0, row] += np.bincount(healthy_bins, weights=histogram.healthy_counts, minlength=n_bins)
        counts[1, row] += np.bincount(lesion_bins, weights=histogram.lesion_counts, minlength=n_bins)
        counts[2, row] += np.bincount(lesion_bins, weights=histogram.lesion_weights, minlength=n_bins)
    lowest = np.empty(n_bins, dtype=np.float32)
    lowest[1::2] = edges
    lowest[0] = -np.inf
    lowest[2::2] = np.nextafter(edges, np.float32(np.inf))
    if pooled:
        counts = counts[:, 0]
    return RankCounts(counts[0], counts[1], counts[2], lowest)


def auroc(counts: RankCounts) -> np.ndarray:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-)/2. NaN where one class is missing."""
    below = np.cumsum(counts.healthy, axis=-1) - counts.healthy / 2
    return _ratio((counts.lesion * below).sum(-1), counts.lesion.sum(-1) * counts.healthy.sum(-1))


def area_below_fpr(counts: RankCounts, limit: float, *, per_region: bool = False) -> np.ndarray:
    """Area under the ROC curve from FPR 0 to `limit`, divided by `limit`; interpolated at `limit`.

    A random map has ``limit / 2``. With `per_region` the true-positive rate is the mean over lesions of their share
    found, which makes it the area under the per-region-overlap curve (AUPRO; Bergmann et al., CVPR 2020).
    """
    hits = counts.lesion_weights if per_region else counts.lesion
    x, y = _curve(counts.healthy), _curve(hits)
    x = _ratio(x, x[..., -1:])
    y = _ratio(y, y[..., -1:])
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    end = np.minimum(x1, limit)
    width = np.maximum(end - x0, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(x1 > x0, (y1 - y0) / (x1 - x0), 0)
    areas = width * (y0 + slope * width / 2)
    return np.where(np.isfinite(x[..., -1] + y[..., -1]), areas.sum(-1) / limit, np.nan)


def mcclish(normalised: np.ndarray, limit: float) -> np.ndarray:
    """Rescale an area up to `limit` so that a random map has 0.5 and a perfect one 1 (McClish 1989)."""
    area, chance = normalised * limit, limit**2 / 2
    return (1 + (area - chance) / (limit - chance)) / 2


def average_precision(counts: RankCounts) -> np.ndarray:
    """Sum of precision times step of recall over thresholds; ties in one step, no interpolation."""
    tp, fp = _curve(counts.lesion)[..., 1:], _curve(counts.healthy)[..., 1:]
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    return _ratio((precision * counts.lesion[..., ::-1]).sum(-1), tp[..., -1])


def prevalence(counts: RankCounts) -> np.ndarray:
    """Share of lesion voxels: the average precision of a random map."""
    lesion = counts.lesion.sum(-1)
    return _ratio(lesion, lesion + counts.healthy.sum(-1))


def best_dice(counts: RankCounts) -> tuple[np.ndarray, np.ndarray]:
    """The best Dice over all thresholds, and the threshold: an ORACLE, since it is chosen on the truth."""
    tp, fp = _curve(counts.lesion)[..., 1:], _curve(counts.healthy)[..., 1:]
    dice = _ratio(2 * tp, tp + fp + tp[..., -1:])
    best = dice.argmax(-1)
    value = np.where(tp[..., -1] > 0, np.take_along_axis(dice, best[..., None], -1)[..., 0], np.nan)
    return value, counts.lowest_scores[::-1][best]


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


def as_estimate(value: np.ndarray | float, counts: RankCounts, *, n: int = 1, needs_healthy: bool = True) -> Estimate:
    """One number as an `Estimate`, or the reason why these voxels do not define it."""
    if counts.lesion.sum() == 0:
        return Estimate.undefined(NO_LESION_VOXEL)
    if needs_healthy and counts.healthy.sum() == 0:
        return Estimate.undefined(ONLY_LESION_VOXELS)
    return Estimate(float(value), n=n)


def _counted_by_rank(scores: np.ndarray, dividers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores and their counts; low ranks share a bin, but never across a divider."""
    if len(scores) == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    ordered = np.sort(scores)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    values, counts = ordered[starts], np.diff(np.append(starts, len(ordered)))
    from_top = len(ordered) - starts
    key = np.where(from_top <= KEPT_ONE_BY_ONE, from_top, 0).astype(np.int64)
    low = from_top > KEPT_ONE_BY_ONE
    key[low] = KEPT_ONE_BY_ONE + 1 + np.floor(KEPT_ONE_BY_ONE * np.log(from_top[low] / KEPT_ONE_BY_ONE)).astype(int)
    gap, on_divider = np.searchsorted(dividers, values), np.searchsorted(dividers, values, side="right")
    # A score that equals a divider is a tie with a lesion voxel and stands alone.
    same = (key[1:] == key[:-1]) & (gap[1:] == gap[:-1]) & (gap[1:] == on_divider[1:]) & (gap[:-1] == on_divider[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], ~same]))
    # The middle value of a bin stands for it, so that thresholds inside it err to either side alike.
    middles = (firsts + np.append(firsts[1:], len(values)) - 1) // 2
    return values[middles], np.add.reduceat(counts, firsts).astype(np.int64)


def _bins(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Bin 2i + 1 holds edge i itself, bin 2i what lies between edges i - 1 and i."""
    return np.searchsorted(edges, values, side="left") + np.searchsorted(edges, values, side="right")


def _at_or_above(values: np.ndarray, counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    above = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return above[np.searchsorted(values, thresholds, side="left")]


def _curve(counts: np.ndarray) -> np.ndarray:
    """Cumulated from the highest bin down, with a leading 0: (..., B + 1)."""
    cumulated = np.cumsum(counts[..., ::-1], axis=-1)
    return np.concatenate([np.zeros_like(cumulated[..., :1]), cumulated], axis=-1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
