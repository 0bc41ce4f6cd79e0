"""The figures of a cohort that rest on clusters, lesions and whole subjects, each with what it is in every draw.

They are counts at the thresholds that the bootstrap draws set; `voxel_measures` has those that need none.
"""

from collections.abc import Sequence
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
    """What S subjects show at the operating point, and where each of D draws puts it: T = 1 + D thresholds.

    Attributes
    ----------
    usable : ndarray of bool, (T,)
        Draws that set a threshold at all.
    false_voxels, true_voxels, clusters, false_clusters, flagged_ml : ndarray, (S, T)
    false_apart, flagged_ml_apart : ndarray, (S,)
        Of a healthy scan, at the threshold that the other healthy scans set; NaN for the others.
    lesions : ndarray, (S, bands)
        Lesions by band of volume.
    found, matched : ndarray, (S, bands, T)
        Of these, lesions touched by a cluster, and matched one to one with a cluster (IoU >= 0.1).
    """

    usable: np.ndarray
    false_voxels: np.ndarray
    true_voxels: np.ndarray
    clusters: np.ndarray
    false_clusters: np.ndarray
    flagged_ml: np.ndarray
    false_apart: np.ndarray
    flagged_ml_apart: np.ndarray
    lesions: np.ndarray
    found: np.ndarray
    matched: np.ndarray

    @classmethod
    def from_scores(
        cls, known: Sequence[SubjectScores], point: OperatingPoint, draws: int, lesion_bands_ml: Sequence[float]
    ) -> "AtOperatingPoint":
        thresholds = point.thresholds(draws)
        usable = np.isfinite(thresholds)
        levels, which = np.unique(np.where(usable, thresholds, 0), return_inverse=True)
        others = iter(point.leave_one_out)
        rows = []
        for subject in known:
            apart = next(others, np.float32(np.nan)) if subject.is_healthy else np.float32(np.nan)
            at = np.append(levels, apart if np.isfinite(apart) else 0).astype(np.float32)
            false, true = subject.histogram.flagged(at)
            clusters = subject.clusters
            every, false_clusters = clusters.clusters_at(at), clusters.false_clusters_at(at)
            band_of = np.digitize([lesion.volume_mm3 / 1000 for lesion in subject.lesions], lesion_bands_ml)
            bands = np.eye(len(lesion_bands_ml) + 1)[band_of]
            found = (subject.found_at >= levels[:, None]) @ bands
            matched = subject.overlaps.matched_at(levels, len(subject.lesions)) @ bands
            flagged_ml = (false + true) * subject.voxel_mm3 / 1000
            known_apart = np.isfinite(apart)
            rows.append(
                (
                    *(counts[:-1][which] for counts in (false, true, every, false_clusters, flagged_ml)),
                    *(float(counts[-1]) if known_apart else np.nan for counts in (false_clusters, flagged_ml)),
                    bands.sum(axis=0),
                    found[which].T,
                    matched[which].T,
                )
            )
        return cls(usable, *(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))

    def subset(self, rows: np.ndarray) -> "AtOperatingPoint":
        """Some of the subjects."""
        return AtOperatingPoint(self.usable, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


def point_measures(known: Sequence[SubjectScores], at: AtOperatingPoint, weights: np.ndarray) -> dict[str, Measure]:
    """Overlap, lesions found by both criteria, and false clusters, at the threshold set on healthy scans."""
    sick = np.array([s.has_lesions for s in known], dtype=np.float64)
    n_sick = int(sick.sum())
    lesion_voxels = np.array([[s.n_lesion] for s in known], dtype=np.float64)
    mine = sick[:, None]

    def share(above: np.ndarray, below: np.ndarray, n: int, why_none: str = NO_PATIENT) -> Measure:
        """A ratio of sums, but only in draws that set a threshold."""
        above, below = np.broadcast_to(above, mine.shape[:1] + at.usable.shape), np.where(at.usable, below, 0)
        return ratio(above, below, weights, n=n, subjects=n_sick, why_none=why_none)

    flagged = at.false_voxels + at.true_voxels + lesion_voxels
    with np.errstate(invalid="ignore", divide="ignore"):
        each_dice = np.where(mine > 0, 2 * at.true_voxels / flagged, 0)
    lesions = at.lesions.sum(axis=1)[:, None]
    found, matched = at.found.sum(axis=1), at.matched.sum(axis=1)
    n_lesions = int(lesions.sum())
    clusters, false_clusters = at.clusters * mine, at.false_clusters * mine
    no_cluster = "no cluster at the threshold set on healthy scans" if n_sick else NO_PATIENT
    measures = {
        "dice_at_healthy_threshold": share(2 * at.true_voxels, flagged if n_sick else 0 * flagged, len(known)),
        "dice_at_healthy_threshold_per_subject_mean": share(each_dice, mine, n_sick),
        "lesion_sensitivity": share(found, lesions, n_lesions),
        "lesion_precision": share(clusters - false_clusters, clusters, n_sick, no_cluster),
        "lesion_sensitivity_iou10": share(matched, lesions, n_lesions),
        "lesion_precision_iou10": share(matched, clusters, n_sick, no_cluster),
        "lesion_f1_iou10": share(2 * matched, (lesions + clusters) * (lesions.sum() > 0), n_lesions),
        "false_clusters_per_subject": share(false_clusters, mine, n_sick),
    }
    measures["lesion_f1"] = _harmonic(measures["lesion_sensitivity"], measures["lesion_precision"])
    healthy = any(s.is_healthy for s in known)
    alone = "a single healthy scan sets the threshold, and none is left to count false clusters in"
    measures["false_clusters_per_healthy_subject"] = mean_over_subjects(
        [None if np.isnan(value) else float(value) for value in at.false_apart],
        weights,
        why_none=alone if healthy else NO_HEALTHY,
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
"""The names of `point_measures`, in the order of tables."""


def sensitivity_by_volume(
    at: AtOperatingPoint, known: Sequence[SubjectScores], weights: np.ndarray
) -> list[dict[str, Measure]]:
    """Lesions found, by both criteria, for each band of lesion volume."""
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
    """F1; 0 where nothing is found, even if that leaves no cluster to be right about."""

    def mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(one == 0, 0, 2 * one * other / (one + other))

    value = float(mean(np.array(sensitivity.value), np.array(precision.value)))
    draws = mean(sensitivity.draws, precision.draws)
    return Measure(value, draws, sensitivity.n, sensitivity.subjects, sensitivity.why_none)


# -- free-response curve and subjects --------------------------------------------------------------------------------
def froc_measure(
    known: Sequence[SubjectScores], false_cluster_thresholds: Sequence[np.ndarray], weights: np.ndarray
) -> Measure:
    """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false clusters a subject."""
    values = froc_scores(false_cluster_thresholds, [s.found_at for s in known], weights)
    with_lesions = sum(bool(s.lesions) for s in known)
    n = sum(len(s.lesions) for s in known)
    return Measure(float(values[0]), values[1:], n, with_lesions, NO_PATIENT)


def subject_measures(
    known: Sequence[SubjectScores], at: AtOperatingPoint | None, why_none: str, weights: np.ndarray
) -> dict[str, Measure]:
    """How well one number of a map tells subjects with lesions from those without."""
    sick = np.array([s.has_lesions for s in known], dtype=bool)
    numbers = {
        "maximum": np.array([s.highest_score for s in known]),
        "p999": np.array([s.score_p999 for s in known]),
    }
    if at is not None:
        # A healthy scan's volume counts at a threshold that it had no part in.
        apart = at.flagged_ml_apart[:, None]
        numbers["volume"] = np.where(np.isfinite(apart), apart, np.where(at.usable, at.flagged_ml, np.nan))
    measures = {}
    for number in ("maximum", "p999", "volume"):
        reason = NO_PATIENT if not sick.any() else "no subject without lesions" if sick.all() else ""
        reason = reason or (why_none if number not in numbers else "")
        areas = precisions = np.full(len(weights), np.nan)
        if not reason:
            areas, precisions = _separation(numbers[number], sick, weights)
        n = len(known) if not reason else 0
        subjects = int(min(sick.sum(), (~sick).sum()))
        for name, values in (("auroc", areas), ("average_precision", precisions)):
            measures[f"subject_{name}_{number}"] = Measure(float(values[0]), values[1:], n, subjects, reason)
    return measures


def _separation(values: np.ndarray, sick: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one number a subject, (S,) or (S, 1 + draws), for each row of weights."""
    columns = [(values, slice(None))] if values.ndim == 1 else [(v, slice(d, d + 1)) for d, v in enumerate(values.T)]
    areas, precisions = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    for column, rows in columns:
        if np.isnan(column).any():
            continue
        different, where = np.unique(column, return_inverse=True)
        own = np.eye(len(different))[where]
        healthy, ill = weights[rows] @ (own * ~sick[:, None]), weights[rows] @ (own * sick[:, None])
        counts = vm.RankCounts(healthy, ill, np.zeros_like(ill), different.astype(np.float32))
        areas[rows], precisions[rows] = vm.auroc(counts), vm.average_precision(counts)
    return areas, precisions
