"""AUROC and average precision of anomaly scores, by the definitions (and the code) that brains are judged by."""

import numpy as np
from voxout.evaluation.metrics.voxel_metrics import (
    RankCounts,
    ScoreHistogram,
    auroc,
    average_precision,
    common_edges,
    rank_counts,
)


def area_under_roc(scores: np.ndarray, n_normal: int) -> float:
    """AUROC of scores whose first `n_normal` are those of normal digits."""
    return float(auroc(_counts(scores, np.arange(len(scores)) >= n_normal)))


def both_metrics(scores: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of scores (N,), higher = more anomalous."""
    counts = _counts(scores, anomalous)
    return float(auroc(counts)), float(average_precision(counts))


def _counts(scores: np.ndarray, anomalous: np.ndarray) -> RankCounts:
    # Ranks decide, and float32 may tie scores that differ: ranks of the scores themselves are exact in it.
    ranks = np.unique(scores, return_inverse=True)[1]
    histogram = ScoreHistogram.from_voxels(ranks, anomalous)
    return rank_counts([histogram], common_edges([histogram.lesion_scores]))
