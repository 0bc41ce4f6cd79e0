"""Cohort-level scoring: pooled metrics, the operating point and bootstrap intervals.

Pooled metrics use the voxels of all subjects with known truth, including healthy ones. The operating point is set on
the healthy scans only. Metrics whose threshold is chosen on the truth are oracles and are always labelled as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from ...data_manifests.errors import UserError
from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Estimate, Measure, resample_subjects
from ..metrics.lesion_metrics import froc_curve
from ..settings import EvaluationSettings
from .cohort_measures import (
    AtOperatingPoint,
    ader_mean,
    froc_measure,
    point_measures,
    sensitivity_by_volume,
    subject_measures,
    undefined_point_measures,
)
from .healthy_rates import DiceAtHealthyRates
from .operating_point import LOWEST_DETECTION, OWN_CUT, OperatingPoint
from .subject_scores import SubjectScores
from .voxel_measures import voxel_measures

ORACLES = (
    "best_dice_pooled",
    "best_dice_per_subject_mean",
    "best_dice_one_threshold_per_subject_mean",
    "subject_f1_max_maximum",
    "subject_f1_max_p999",
    "subject_f1_max_volume",
    "ader_mean",
)
"""Metrics whose threshold is chosen on the truth; not attainable for a new scan."""
FROC_SHOWN = 16.0
"""Highest number of false clusters per subject of the stored FROC curve."""


@dataclass(frozen=True)
class SubjectRow:
    """Metrics of one subject at the operating point of the cohort; None if undefined.

    Attributes
    ----------
    dice : float or None
        Dice at the threshold set on healthy scans.
    clusters, false_clusters : int or None
    lesions_found : int or None
    flagged_ml : float or None
        Volume of the flagged voxels; in a healthy brain all of them are false positives.
    """

    key: str
    dice: float | None
    clusters: int | None
    false_clusters: int | None
    lesions_found: int | None
    flagged_ml: float | None
    lesions_matched: int | None = None
    """Lesions matched one to one with a cluster of IoU >= 0.1."""
    aupimo: float | None = None


@dataclass(frozen=True)
class Stratum:
    """Metrics of a subgroup of the subjects, or of the lesions in a volume band.

    Attributes
    ----------
    by : str
        "site", "age", "sex" or "lesion volume".
    name : str
        For example "40 to 60 years".
    measures : mapping from name to Measure
    """

    by: str
    name: str
    measures: Mapping[str, Measure]


@dataclass(frozen=True, eq=False)
class CohortScores:
    """Metrics of a cohort, returned by `evaluate`.

    Attributes
    ----------
    measures : mapping from name to Measure
        Names as in ``scores.json``.
    strata : tuple of Stratum
        Metrics by site, age band, sex and lesion volume.
    point : OperatingPoint
        Threshold set on healthy scans, with its uncertainty.
    subjects : tuple of SubjectScores
        Histograms and curves of each subject.
    rows : tuple of SubjectRow
        Metrics of each subject, in the same order.
    counts : RankCounts
        Counts of all voxels pooled, for the ROC and precision-recall curves.
    each : RankCounts
        One row of counts per subject with known truth, on coarser bins, for the bootstrap.
    froc : tuple of ndarray, (rates, sensitivities), or None
        FROC curve: false-positive clusters per subject, and lesion-wise sensitivity.
    settings : EvaluationSettings
    space, mask : str
        Space in which maps and masks were compared, and name of the evaluation mask.
    """

    measures: Mapping[str, Measure]
    strata: tuple[Stratum, ...]
    point: OperatingPoint
    subjects: tuple[SubjectScores, ...]
    rows: tuple[SubjectRow, ...]
    counts: vm.RankCounts
    each: vm.RankCounts
    froc: tuple[np.ndarray, np.ndarray] | None
    settings: EvaluationSettings
    space: str
    mask: str

    def __repr__(self) -> str:
        threshold = "None" if self.threshold is None else f"{self.threshold:.2f}"
        return f"CohortScores(subjects={len(self.rows)}, space={self.space!r}, threshold={threshold})"

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Metrics with 95 % bootstrap intervals, by their names in ``scores.json``."""
        return {name: measure.estimate() for name, measure in self.measures.items()}

    @property
    def threshold(self) -> float | None:
        """Threshold at the operating point; None if undefined."""
        return self.point.threshold if np.isfinite(self.point.threshold) else None

    def row(self, key: str) -> SubjectRow:
        """Return the row of a subject."""
        return next(row for row in self.rows if row.key == key)


def score_cohort(
    subjects: Sequence[SubjectScores],
    settings: EvaluationSettings,
    *,
    space: str | None = None,
    mask: str = "brain mask",
    seed: int = 0,
    point: OperatingPoint | None = None,
    with_strata: bool = True,
) -> CohortScores:
    """Pool the scores of all subjects.

    Parameters
    ----------
    subjects : sequence of SubjectScores
        Held-out controls and patients; controls that a detector was fitted on must not be included.
    settings : EvaluationSettings
    space : str, optional
        ``settings.space`` by default.
    mask : str
        Name of the evaluation mask, for the tables.
    seed : int
        Seed of the bootstrap.
    point : OperatingPoint, optional
        Operating point from elsewhere; set on the healthy scans of this cohort by default.
    with_strata : bool
        Whether to compute metrics by site, age, sex and lesion volume as well.

    Raises
    ------
    UserError
        No subjects, or a duplicate key.
    """
    subjects = tuple(subjects)
    _require_one_map_each(subjects)
    known = tuple(subject for subject in subjects if subject.truth_known)
    weights = bootstrap_weights(known, settings.bootstrap_draws, seed)
    # No bootstrap sample uses more than this many thresholds of a scan.
    most = int(np.ceil(max(FROC_SHOWN, settings.false_clusters) * len(known))) + 1
    false_cluster_thresholds = [s.clusters.false_cluster_thresholds[:most] for s in known]
    if point is None:
        point = _own_point(known, false_cluster_thresholds, weights, settings)
    else:
        # The threshold is independent of these scans, so no leave-one-out thresholds are needed.
        n_healthy = sum(s.is_healthy for s in known)
        point = replace(point, leave_one_out=np.full(n_healthy, point.threshold, np.float32))
    at = None
    if known and np.isfinite(point.threshold):
        at = AtOperatingPoint.from_scores(known, point, settings.bootstrap_draws, settings.lesion_bands_ml)
    voxels = voxel_measures(known, weights)
    at_rates = DiceAtHealthyRates.from_scores(known, weights)
    measures = {**voxels.measures, "healthy_threshold": point.measure}
    measures |= at_rates.measures(np.arange(len(known)), weights)
    measures |= undefined_point_measures(known, point, settings.bootstrap_draws)
    if at is not None:
        measures |= point_measures(known, at, weights)
    measures["froc_score"] = froc_measure(known, false_cluster_thresholds, weights)
    measures |= subject_measures(known, at, point.why_none, weights)
    measures["ader_mean"] = ader_mean(measures)
    return CohortScores(
        measures=measures,
        strata=_strata(known, false_cluster_thresholds, at, at_rates, weights, settings) if with_strata else (),
        point=point,
        subjects=subjects,
        rows=tuple(subject_row(s, point.threshold, voxels.aupimo.get(s.key)) for s in subjects),
        counts=voxels.counts,
        each=voxels.each,
        froc=_shown_froc(known, false_cluster_thresholds),
        settings=settings,
        space=space or settings.space,
        mask=mask,
    )


def _require_one_map_each(subjects: Sequence[SubjectScores]) -> None:
    keys = [subject.key for subject in subjects]
    if not keys:
        raise UserError("No map was scored, expected at least one. Check that the cohort lists patients or controls.")
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise UserError(f"{', '.join(twice)}: scored more than once, expected one map per subject. Drop the others.")


def _own_point(
    known: Sequence[SubjectScores],
    false_cluster_thresholds: Sequence[np.ndarray],
    weights: np.ndarray,
    settings: EvaluationSettings,
) -> OperatingPoint:
    """Operating point that is set on the healthy scans of the cohort."""
    healthy = np.array([s.is_healthy for s in known], dtype=bool)
    own = [b for b, is_healthy in zip(false_cluster_thresholds, healthy, strict=True) if is_healthy]
    participants = [s.participant for s in known if s.is_healthy]
    point = OperatingPoint.set_on(own, settings.false_clusters, weights[:, healthy], participants)
    return _sparse_point(known, point) or point


def _sparse_point(known: Sequence[SubjectScores], point: OperatingPoint) -> OperatingPoint | None:
    """Operating point of segmentations and of sparse maps (a few detections on a constant background).

    A segmentation has only one possible threshold. For other sparse maps, healthy scans cannot set a threshold if they
    have too few detections; then all scores above the background count as detections. None if `point` is to be kept.
    """
    detections = [s.lowest_detection for s in known if s.lowest_detection is not None]
    backgrounds = [s.background for s in known if s.background is not None]
    if not detections or min(detections) <= max(backgrounds):
        return None
    n_healthy = sum(s.is_healthy for s in known)
    n_draws, lowest = len(point.draws), min(detections)
    if all(s.is_segmentation for s in known):
        return OperatingPoint.fixed_by_maps(lowest, OWN_CUT, n_healthy, n_draws)
    if n_healthy == 0 or not all(s.background is not None for s in known if s.is_healthy):
        return None
    if not np.isfinite(point.threshold):
        return OperatingPoint.fixed_by_maps(lowest, LOWEST_DETECTION, n_healthy, n_draws)
    # Single bootstrap samples or leave-one-out sets may have too few detections.
    draws, leave_one_out = (np.where(np.isnan(t), np.float32(lowest), t) for t in (point.draws, point.leave_one_out))
    return replace(
        point, draws=draws, leave_one_out=point.leave_one_out if np.isnan(point.leave_one_out).all() else leave_one_out
    )


def _shown_froc(
    known: Sequence[SubjectScores], false_cluster_thresholds: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """FROC curve up to `FROC_SHOWN`; None without lesions."""
    if not any(s.lesions for s in known):
        return None
    rates, found = froc_curve(false_cluster_thresholds, [s.found_at for s in known])
    shown = rates <= FROC_SHOWN
    return rates[shown], found[shown]


def bootstrap_weights(known: Sequence[SubjectScores], draws: int, seed: int) -> np.ndarray:
    """Weight of each scan in each bootstrap sample, (1 + draws, S); see `resample_subjects`."""
    strata, participants = [f"{s.is_healthy}{s.has_lesions}" for s in known], [s.participant for s in known]
    return resample_subjects(strata, draws, seed, participants)


_SEXES = {"F": "female", "M": "male", "O": "other"}


def _strata(
    known: Sequence[SubjectScores],
    false_cluster_thresholds: Sequence[np.ndarray],
    at: AtOperatingPoint | None,
    at_rates: DiceAtHealthyRates,
    weights: np.ndarray,
    settings: EvaluationSettings,
) -> tuple[Stratum, ...]:
    strata = []
    ages = _bands(settings.age_bands, "years")
    groups = {
        "site": [s.site for s in known],
        "age": [None if s.age is None else ages[np.digitize(s.age, settings.age_bands)] for s in known],
        "sex": [_SEXES.get(s.sex or "") for s in known],
    }
    for by, names in groups.items():
        present = {name for name in names if name}
        order = [band for band in ages if band in present] if by == "age" else sorted(present)
        for name in order:
            rows = np.flatnonzero([own == name for own in names])
            members = [known[row] for row in rows]
            measures = voxel_measures(members, weights[:, rows]).measures
            measures |= at_rates.measures(rows, weights[:, rows])
            if at is not None:
                measures |= point_measures(members, at.subset(rows), weights[:, rows])
            measures["froc_score"] = froc_measure(
                members, [false_cluster_thresholds[row] for row in rows], weights[:, rows]
            )
            strata.append(Stratum(by, str(name), measures))
    if at is not None and at.lesions.sum() > 0:
        names = _bands(settings.lesion_bands_ml, "ml")
        for name, measures in zip(names, sensitivity_by_volume(at, known, weights), strict=True):
            strata.append(Stratum("lesion volume", name, measures))
    return tuple(strata)


def _bands(bounds: Sequence[float], unit: str) -> list[str]:
    """Names of the bands between bounds; each band includes its lower bound."""
    if not bounds:
        return [f"all {unit}"]
    between = [f"{low:g} to {high:g} {unit}" for low, high in pairwise(bounds)]
    return [f"below {bounds[0]:g} {unit}", *between, f"{bounds[-1]:g} {unit} and more"]


def subject_row(subject: SubjectScores, threshold: float, aupimo: float | None = None) -> SubjectRow:
    """Return the metrics of one subject at a threshold; undefined if the threshold is NaN."""
    if not np.isfinite(threshold):
        return SubjectRow(subject.key, None, None, None, None, None, aupimo=aupimo)
    known, clusters = subject.truth_known, subject.clusters
    matched = subject.overlaps.matched_at(np.array([threshold]), len(subject.lesions)).sum()
    return SubjectRow(
        key=subject.key,
        dice=subject.dice_at(threshold).value,
        clusters=int(clusters.clusters_at(threshold)),
        false_clusters=int(clusters.false_clusters_at(threshold)) if known else None,
        lesions_found=subject.lesions_found_at(threshold) if known and subject.lesions else None,
        flagged_ml=subject.flagged_ml_at(threshold),
        lesions_matched=int(matched) if known and subject.lesions else None,
        aupimo=aupimo,
    )
