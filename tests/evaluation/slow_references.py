"""Slow reference implementations of the voxel-wise metrics on pooled voxels, and random cohorts.

The references share no code with the package. scikit-learn is given float64, since its float32 path rounds.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn import metrics

TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Scan:
    """Scores of one scan; `labels` numbers the lesions (none in a healthy scan)."""

    scores: np.ndarray
    labels: np.ndarray
    healthy: bool


def random_cohort(seed: int) -> list[Scan]:
    """One to five scans with or without ties, heavy tails, offsets, separable classes and lesions of all sizes."""
    random = np.random.default_rng(seed)
    # One case in ten is large enough for low ranks to share bins.
    edge = 64 if seed % 10 == 0 else int(random.integers(6, 22))
    kind = ("normal", "cauchy", "gamma")[seed % 3]
    contrast, steps = random.choice([-0.5, 0.3, 1.5, 30.0]), random.choice([0, 0, 1, 4, 64])
    offset = random.choice([0.0, 0.0, -1000.0, 50.0])
    scans = []
    for number in range(int(random.integers(1, 6))):
        shape = (edge, edge + 1, edge + int(random.integers(0, 3)))
        healthy = number > 0 and random.random() < 0.4
        truth = np.zeros(shape, bool)
        if not healthy:
            size = random.choice(["voxels", "blobs", "huge"])
            if size == "huge":
                truth[: edge - 1, 1:, 1:] = True
            if size == "blobs":
                smooth = ndimage.gaussian_filter(random.standard_normal(shape), edge / 8)
                truth = smooth > 1.5 * smooth.std()
            truth.flat[random.choice(truth.size, int(random.integers(1, 4)), replace=False)] = True
        scores = {
            "normal": random.standard_normal,
            "cauchy": random.standard_cauchy,
            "gamma": lambda size: random.gamma(2, size=size),
        }[kind](shape) + contrast * truth
        if steps:
            scores = np.round(scores * steps) / steps
        labels = ndimage.label(truth, structure=TOUCHING)[0].astype(np.int32)
        scans.append(Scan((scores + offset).astype(np.float32), labels, healthy))
    return scans


def slow_metrics(scans: list[Scan]) -> dict[str, float]:
    """Return the metrics by their names in ``scores.json``."""
    scores = np.concatenate([s.scores.ravel() for s in scans]).astype(np.float64)
    truth = np.concatenate([s.labels.ravel() > 0 for s in scans])
    mcclish = metrics.roc_auc_score(truth, scores, max_fpr=0.3)
    values = {
        "auroc": metrics.roc_auc_score(truth, scores),
        "auroc_fpr30_mcclish": mcclish,
        "auroc_fpr30_normalised": ((2 * mcclish - 1) * (0.3 - 0.045) + 0.045) / 0.3,
        "average_precision": metrics.average_precision_score(truth, scores),
        "prevalence": truth.mean(),
        "best_dice_pooled": best_dice(scores, truth),
        "aupro_fpr30": aupro(scans, 0.3),
        "aupro_fpr05": aupro(scans, 0.05),
    }
    with_lesions = [s for s in scans if s.labels.any()]
    each = [(s.labels.ravel() > 0, s.scores.ravel().astype(np.float64)) for s in with_lesions]
    values["auroc_per_subject_mean"] = np.mean([metrics.roc_auc_score(t, v) for t, v in each])
    values["average_precision_per_subject_mean"] = np.mean([metrics.average_precision_score(t, v) for t, v in each])
    values["best_dice_per_subject_mean"] = np.mean([best_dice(v, t) for t, v in each])
    values["best_dice_one_threshold_per_subject_mean"] = best_mean_dice(with_lesions)
    healthy = [s for s in scans if s.healthy]
    if sum(s.scores.size for s in healthy) >= 10**5:
        values["aupimo"] = np.mean([aupimo(s, healthy) for s in with_lesions])
    return values


def best_dice(scores: np.ndarray, truth: np.ndarray) -> float:
    """Best Dice over all thresholds as the harmonic mean of scikit-learn's precision and recall."""
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    both = precision + recall
    return float(np.max(np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)))


def best_mean_dice(scans: list[Scan]) -> float:
    """Highest mean of the scans' Dice at a common threshold, among the scores of all lesion voxels."""
    thresholds = np.unique(np.concatenate([s.scores[s.labels > 0] for s in scans]))
    total = np.zeros(len(thresholds))
    for scan in scans:
        lesion = scan.labels > 0
        true, flagged = (
            np.searchsorted(np.sort(v), thresholds, side="left") for v in (scan.scores[lesion], scan.scores.ravel())
        )
        true, flagged = lesion.sum() - true, lesion.size - flagged
        total += 2 * true / (flagged + lesion.sum())
    return float(total.max() / len(scans))


def aupro(scans: list[Scan], limit: float) -> float:
    """Mean recall of the lesions over the pooled FPR by the trapezoidal rule, interpolated at the limit."""
    thresholds = np.unique(np.concatenate([s.scores.ravel() for s in scans]))[::-1]
    normal = np.concatenate([s.scores[s.labels == 0] for s in scans])
    fpr = np.append(0, share_at(normal, thresholds))
    total, lesions = np.zeros(len(thresholds)), 0
    for scan in scans:
        for lesion in range(1, scan.labels.max() + 1):
            own = scan.scores[scan.labels == lesion]
            total += share_at(own, thresholds)
            lesions += 1
    pro = np.append(0, total / lesions)
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    # For points of equal FPR, interpolation starts at the last one.
    if not inside.all():
        first, last = np.flatnonzero(~inside)[0], np.flatnonzero(inside)[-1]
        share = (limit - fpr[last]) / (fpr[first] - fpr[last])
        y[-1] = pro[last] + share * (pro[first] - pro[last])
    return float(np.trapezoid(y, x) / limit)


def aupimo(scan: Scan, healthy: list[Scan], low: float = 1e-5, high: float = 1e-4) -> float:
    """Mean of the recall, a step function of the FPR averaged over the healthy scans, over log FPR."""
    lesion = np.unique(scan.scores[scan.labels > 0])[::-1]
    rates = np.mean([share_at(h.scores, lesion) for h in healthy], axis=0)
    recalls = share_at(scan.scores[scan.labels > 0], lesion)
    area = 0.0
    for index, (rate, recall) in enumerate(zip(rates, recalls, strict=True)):
        end = rates[index + 1] if index + 1 < len(rates) else np.inf
        a, b = np.clip([rate, end], low, high)
        area += recall * np.log(b / a)
    return area / np.log(high / low)


def share_at(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Fraction of the scores at or above each threshold."""
    ordered = np.sort(scores.ravel())
    return 1 - np.searchsorted(ordered, thresholds, side="left") / len(ordered)
