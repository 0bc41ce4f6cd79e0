"""AUROC and average precision of anomaly scores, computed as in `voxout.evaluation`."""

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
    """AUROC of scores, of which the first `n_normal` are of normal digits."""
    return float(auroc(_counts(scores, np.arange(len(scores)) >= n_normal)))


def both_metrics(scores: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of scores (N,), higher = more anomalous."""
    counts = _counts(scores, anomalous)
    return float(auroc(counts)), float(average_precision(counts))


def _counts(scores: np.ndarray, anomalous: np.ndarray) -> RankCounts:
    # Ranks instead of scores, as float32 could make different scores equal.
    ranks = np.unique(scores, return_inverse=True)[1]
    histogram = ScoreHistogram.from_voxels(ranks, anomalous)
    return rank_counts([histogram], common_edges([histogram.lesion_scores]))
