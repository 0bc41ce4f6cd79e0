"""Metrics of anomaly maps on arrays, voxel-wise and lesion-wise.

>>> import numpy as np
>>> from voxout import metrics
>>> scores = np.array([0.1, 0.4, 0.35, 0.8])
>>> truth = np.array([False, False, True, True])
>>> metrics.auroc(scores, truth), metrics.average_precision(scores, truth)
(0.75, 0.8333333333333333)
>>> dice, threshold = metrics.best_dice(scores, truth)
>>> round(dice, 3)
0.8
"""

import numpy as np

from .data_manifests.errors import UserError
from .evaluation.metrics import voxel_metrics as _voxel
from .evaluation.metrics.clusters import Cluster, find_clusters
from .evaluation.metrics.components import Lesion, find_lesions
from .evaluation.metrics.lesion_metrics import cluster_curve, froc_curve, operating_threshold

__all__ = [
    "Cluster",
    "Lesion",
    "auroc",
    "average_precision",
    "best_dice",
    "cluster_curve",
    "find_clusters",
    "find_lesions",
    "froc_curve",
    "operating_threshold",
]


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve; ties count one half.

    Parameters
    ----------
    scores : ndarray
        Higher = more anomalous; compared as float32.
    truth : ndarray of bool, same shape
        True in lesions.

    Returns
    -------
    float
        NaN if a class is missing.
    """
    return float(_voxel.auroc(_counts(scores, truth)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision: sum of precision times recall step; ties form one step. Parameters as in `auroc`."""
    return float(_voxel.average_precision(_counts(scores, truth)))


def best_dice(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Best Dice over all thresholds, and its threshold. An oracle: the threshold is chosen on the truth.

    Parameters as in `auroc`.
    """
    dice, threshold = _voxel.best_dice(_counts(scores, truth))
    return float(dice), float(threshold)


def _counts(scores: np.ndarray, truth: np.ndarray) -> _voxel.RankCounts:
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.shape != truth.shape:
        raise UserError(f"scores have the shape {scores.shape} and truth {truth.shape}, expected the same shape.")
    if np.isnan(scores).any():
        raise UserError("scores hold NaN, expected numbers. Use -inf for voxels without a score.")
    histogram = _voxel.ScoreHistogram.from_voxels(scores.ravel(), truth.astype(bool).ravel())
    return _voxel.rank_counts([histogram], _voxel.common_edges([histogram.lesion_scores]))
