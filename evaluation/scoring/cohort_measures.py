"""Cluster-, lesion- and subject-level metrics of a cohort, with their values in every bootstrap sample.

Most of them are counts at the threshold set by each bootstrap sample; metrics without a threshold are in
`voxel_measures`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Measure, mean_over_subjects, ratio
from ..metrics.lesion_metrics import froc_scores
from .operating_point import OperatingPoint
from .subject_scores import SubjectScores
from .voxel_measures import NO_HEALTHY, NO_PATIENT


# -- the operating point ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class AtOperatingPoint:
    """Counts of S subjects at the operating point of the cohort and of D bootstrap samples: T = 1 + D thresholds.

    Attributes
    ----------
    usable : ndarray of bool, (T,)
        Whether a threshold is defined.
    false_voxels, true_voxels, clusters, false_clusters, flagged_ml : ndarray, (S, T)
    false_clusters_left_out, flagged_ml_left_out : ndarray, (S,)
        For healthy scans, at the threshold set on the other healthy scans (leave-one-out); NaN for all other scans.
    lesions : ndarray, (S, bands)
        Number of lesions per volume band.
    found, matched : ndarray, (S, bands, T)
        Number of these lesions touched by a cluster, and matched one to one with a cluster (IoU >= 0.1).
    """

    usable: np.ndarray
    false_voxels: np.ndarray
    true_voxels: np.ndarray
    clusters: np.ndarray
    false_clusters: np.ndarray
    flagged_ml: np.ndarray
    false_clusters_left_out: np.ndarray
    flagged_ml_left_out: np.ndarray
    lesions: np.ndarray
    found: np.ndarray
    matched: np.ndarray

    @classmethod
    def from_scores(
        cls, known: Sequence[SubjectScores], point: OperatingPoint, draws: int, lesion_bands_ml: Sequence[float]
    ) -> "AtOperatingPoint":
        """Measure each scan at the threshold and at its values in `draws` bootstrap samples."""
        thresholds = point.thresholds(draws)
        usable = np.isfinite(thresholds)
        levels, which = np.unique(np.where(usable, thresholds, 0), return_inverse=True)
        others = iter(point.leave_one_out)
        rows = []
        for subject in known:
            left_out = next(others, np.float32(np.nan)) if subject.is_healthy else np.float32(np.nan)
            at = np.append(levels, left_out if np.isfinite(left_out) else 0).astype(np.float32)
            false, true = subject.histogram.flagged(at)
            clusters = subject.clusters
            every, false_clusters = clusters.clusters_at(at), clusters.false_clusters_at(at)
            band_of = np.digitize([lesion.volume_mm3 / 1000 for lesion in subject.lesions], lesion_bands_ml)
            bands = np.eye(len(lesion_bands_ml) + 1)[band_of]
            found = (subject.found_at >= levels[:, None]) @ bands
            matched = subject.overlaps.matched_at(levels, len(subject.lesions)) @ bands
            flagged_ml = (false + true) * subject.voxel_mm3 / 1000
            has_left_out = np.isfinite(left_out)
            rows.append(
                (
                    *(counts[:-1][which] for counts in (false, true, every, false_clusters, flagged_ml)),
                    *(float(counts[-1]) if has_left_out else np.nan for counts in (false_clusters, flagged_ml)),
                    bands.sum(axis=0),
                    found[which].T,
                    matched[which].T,
                )
            )
        return cls(usable, *(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))

    def subset(self, rows: np.ndarray) -> "AtOperatingPoint":
        """Return the counts of a subset of the subjects."""
        return AtOperatingPoint(self.usable, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


def point_measures(known: Sequence[SubjectScores], at: AtOperatingPoint, weights: np.ndarray) -> dict[str, Measure]:
    """Dice, lesion detection by both criteria and false clusters at the threshold set on healthy scans."""
    has_lesions = np.array([s.has_lesions for s in known], dtype=np.float64)
    n_with_lesions = int(has_lesions.sum())
    lesion_voxels = np.array([[s.n_lesion] for s in known], dtype=np.float64)
    with_lesions = has_lesions[:, None]

    def share(above: np.ndarray, below: np.ndarray, n: int, why_none: str = NO_PATIENT) -> Measure:
        """Ratio of sums over bootstrap samples with a defined threshold."""
        above, below = np.broadcast_to(above, with_lesions.shape[:1] + at.usable.shape), np.where(at.usable, below, 0)
        return ratio(above, below, weights, n=n, subjects=n_with_lesions, why_none=why_none)

    flagged = at.false_voxels + at.true_voxels + lesion_voxels
    with np.errstate(invalid="ignore", divide="ignore"):
        each_dice = np.where(with_lesions > 0, 2 * at.true_voxels / flagged, 0)
    lesions = at.lesions.sum(axis=1)[:, None]
    found, matched = at.found.sum(axis=1), at.matched.sum(axis=1)
    n_lesions = int(lesions.sum())
    clusters, false_clusters = at.clusters * with_lesions, at.false_clusters * with_lesions
    no_cluster = "no cluster at the threshold set on healthy scans" if n_with_lesions else NO_PATIENT
    measures = {
        "dice_at_healthy_threshold": share(2 * at.true_voxels, flagged if n_with_lesions else 0 * flagged, len(known)),
        "dice_at_healthy_threshold_per_subject_mean": share(each_dice, with_lesions, n_with_lesions),
        "lesion_sensitivity": share(found, lesions, n_lesions),
        "lesion_precision": share(clusters - false_clusters, clusters, n_with_lesions, no_cluster),
        "lesion_sensitivity_iou10": share(matched, lesions, n_lesions),
        "lesion_precision_iou10": share(matched, clusters, n_with_lesions, no_cluster),
        "lesion_f1_iou10": share(2 * matched, (lesions + clusters) * (lesions.sum() > 0), n_lesions),
        "false_clusters_per_subject": share(false_clusters, with_lesions, n_with_lesions),
    }
    measures["lesion_f1"] = _harmonic(measures["lesion_sensitivity"], measures["lesion_precision"])
    healthy = any(s.is_healthy for s in known)
    single = "a single healthy scan sets the threshold, and no other is left in which to count false clusters"
    measures["false_clusters_per_healthy_subject"] = mean_over_subjects(
        [None if np.isnan(value) else float(value) for value in at.false_clusters_left_out],
        weights,
        why_none=single if healthy else NO_HEALTHY,
    )
    return measures


POINT_MEASURES = (
    "dice_at_healthy_threshold",
    "dice_at_healthy_threshold_per_subject_mean",
    "lesion_sensitivity",
    "lesion_precision",
    "lesion_f1",
    "lesion_sensitivity_iou10",
    "lesion_precision_iou10",
    "lesion_f1_iou10",
    "false_clusters_per_subject",
    "false_clusters_per_healthy_subject",
)
"""Names of `point_measures`, in the order of the tables."""


def undefined_point_measures(known: Sequence[SubjectScores], point: OperatingPoint, draws: int) -> dict[str, Measure]:
    """`point_measures` without a threshold, or without a subject whose truth is known."""
    reasons = dict.fromkeys(POINT_MEASURES, point.why_none if known else NO_PATIENT)
    if not known:
        reasons["false_clusters_per_healthy_subject"] = NO_HEALTHY
    return {name: Measure(np.nan, np.full(draws, np.nan), 0, 0, reason) for name, reason in reasons.items()}


def sensitivity_by_volume(
    at: AtOperatingPoint, known: Sequence[SubjectScores], weights: np.ndarray
) -> list[dict[str, Measure]]:
    """Lesion sensitivity by both criteria in each band of lesion volume."""
    bands = []
    for band in range(at.lesions.shape[1]):
        lesions = at.lesions[:, band, None] * at.usable
        subjects = int((at.lesions[:, band] > 0).sum())
        n, why_none = int(at.lesions[:, band].sum()), "no lesion of this volume"
        bands.append(
            {
                name: ratio(hits[:, band], lesions, weights, n=n, subjects=subjects, why_none=why_none)
                for name, hits in (("lesion_sensitivity", at.found), ("lesion_sensitivity_iou10", at.matched))
            }
        )
    return bands


def _harmonic(sensitivity: Measure, precision: Measure) -> Measure:
    """F1 score; 0 if no lesion is found, even if the precision is undefined."""

    def mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(one == 0, 0, 2 * one * other / (one + other))

    value = float(mean(np.array(sensitivity.value), np.array(precision.value)))
    draws = mean(sensitivity.draws, precision.draws)
    return Measure(value, draws, sensitivity.n, sensitivity.subjects, sensitivity.why_none)


# -- FROC and subject-level metrics ----------------------------------------------------------------------------------
def froc_measure(
    known: Sequence[SubjectScores], false_cluster_thresholds: Sequence[np.ndarray], weights: np.ndarray
) -> Measure:
    """FROC score: mean lesion sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false clusters per subject."""
    values = froc_scores(false_cluster_thresholds, [s.found_at for s in known], weights)
    with_lesions = sum(bool(s.lesions) for s in known)
    n = sum(len(s.lesions) for s in known)
    return Measure(float(values[0]), values[1:], n, with_lesions, NO_PATIENT)


def subject_measures(
    known: Sequence[SubjectScores], at: AtOperatingPoint | None, why_none: str, weights: np.ndarray
) -> dict[str, Measure]:
    """AUROC, average precision and F1-max of subjects with lesions against those without.

    Subjects are classified by the maximum, the 99.9th percentile or the suprathreshold volume of their map.
    """
    has_lesions = np.array([s.has_lesions for s in known], dtype=bool)
    numbers = {
        "maximum": np.array([s.highest_score for s in known]),
        "p999": np.array([s.score_p999 for s in known]),
    }
    if at is not None:
        # For healthy scans the leave-one-out threshold is used.
        left_out = at.flagged_ml_left_out[:, None]
        numbers["volume"] = np.where(np.isfinite(left_out), left_out, np.where(at.usable, at.flagged_ml, np.nan))
    measures = {}
    for number in ("maximum", "p999", "volume"):
        reason = NO_PATIENT if not has_lesions.any() else "no subject without lesions" if has_lesions.all() else ""
        reason = reason or (why_none if number not in numbers else "")
        found = [np.full(len(weights), np.nan)] * len(_SEPARATION)
        if not reason:
            found = _separation(numbers[number], has_lesions, weights)
        n = len(known) if not reason else 0
        subjects = int(min(has_lesions.sum(), (~has_lesions).sum()))
        for name, values in zip(_SEPARATION, found, strict=True):
            measures[f"subject_{name}_{number}"] = Measure(float(values[0]), values[1:], n, subjects, reason)
    return measures


_SEPARATION: Mapping[str, Callable[[vm.RankCounts], np.ndarray]] = {
    "auroc": vm.auroc,
    "average_precision": vm.average_precision,
    "f1_max": lambda counts: vm.best_dice(counts)[0],
}


def _separation(values: np.ndarray, has_lesions: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Metrics of `_SEPARATION` of one number per subject, (S,) or (S, 1 + draws), for each row of weights."""
    columns = [(values, slice(None))] if values.ndim == 1 else [(v, slice(d, d + 1)) for d, v in enumerate(values.T)]
    found = [np.full(len(weights), np.nan) for _ in _SEPARATION]
    for column, rows in columns:
        if np.isnan(column).any():
            continue
        different, where = np.unique(column, return_inverse=True)
        own = np.eye(len(different))[where]
        healthy, lesion = weights[rows] @ (own * ~has_lesions[:, None]), weights[rows] @ (own * has_lesions[:, None])
        counts = vm.RankCounts(healthy, lesion, np.zeros_like(lesion), different.astype(np.float32))
        for part, metric in zip(found, _SEPARATION.values(), strict=True):
            part[rows] = metric(counts)
    return found


ADER_METRICS = (
    "auroc",
    "average_precision",
    "best_dice_pooled",
    "aupro_fpr30",
    "subject_auroc_maximum",
    "subject_average_precision_maximum",
    "subject_f1_max_maximum",
)
"""Metrics that `ader_mean` averages: AUROC, AP and F1-max of voxels and of subjects, and AUPRO."""


def ader_mean(measures: Mapping[str, Measure]) -> Measure:
    """Mean of `ADER_METRICS` (mAD in ADer); undefined if any of them is."""
    parts = [measures[name] for name in ADER_METRICS]
    value, draws = (np.mean([getattr(m, part) for m in parts], axis=0) for part in ("value", "draws"))
    why_none = next((m.why_none for m in parts if not np.isfinite(m.value)), "")
    return Measure(float(value), draws, parts[0].n, min(m.subjects for m in parts), why_none)
