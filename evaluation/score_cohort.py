"""All subjects together: pooled figures, the operating point, and their intervals.

Pooled figures take the voxels of every subject whose truth is known, healthy ones included. The operating point is
set on the healthy scans alone. A figure whose threshold is chosen on the truth is an oracle, and is called so
wherever it stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data_manifests.errors import UserError
from . import voxel_metrics as vm
from .intervals import Estimate, mean_over_subjects, resample_subjects
from .lesion_metrics import FROC_RATES, froc_curve, operating_threshold, sensitivity_at
from .score_subject import SubjectScores
from .settings import EvaluationSettings

POOLED_EDGES = 2**20
"""Different lesion scores up to which pooled figures are exact; with more they err by less than 1e-6."""
BOOTSTRAP_EDGES = 2**13

ORACLES = ("best_dice_pooled", "best_dice_per_subject_mean")
"""Figures whose threshold is chosen on the truth: no reader of a new scan can reach them."""

_NO_PATIENT = "no subject with a lesion mask that holds a lesion"
_NO_HEALTHY = "no healthy scan was scored, so nothing sets a threshold"
_NO_LIMIT = "even with every voxel flagged the healthy brains show no more clusters than allowed"


@dataclass(frozen=True)
class SubjectRow:
    """One subject's figures at the cohort's operating point. None: not defined.

    Attributes
    ----------
    dice : float or None
        At the threshold set on healthy scans.
    clusters, false_clusters : int or None
    lesions_found : int or None
    flagged_ml : float or None
        Volume of the flagged voxels: in a healthy brain, all false.
    """

    key: str
    dice: float | None
    clusters: int | None
    false_clusters: int | None
    lesions_found: int | None
    flagged_ml: float | None


@dataclass(frozen=True, eq=False)
class CohortScores:
    """The figures of a cohort.

    Attributes
    ----------
    estimates : mapping from name to Estimate
        Names as in ``scores.json``.
    threshold : float or None
        The operating point.
    subjects : tuple of SubjectScores
    rows : tuple of SubjectRow
        One a subject, in the same order.
    counts : RankCounts
        Of all voxels pooled: the ROC and the precision-recall curve.
    froc : tuple of ndarray, (rates, sensitivities), or None
    space, mask : str
        Where maps and masks met, and inside which mask.
    """

    estimates: Mapping[str, Estimate]
    threshold: float | None
    subjects: tuple[SubjectScores, ...]
    rows: tuple[SubjectRow, ...]
    counts: vm.RankCounts
    froc: tuple[np.ndarray, np.ndarray] | None
    settings: EvaluationSettings
    space: str
    mask: str

    def row(self, key: str) -> SubjectRow:
        return next(row for row in self.rows if row.key == key)


def score_cohort(
    subjects: Sequence[SubjectScores],
    settings: EvaluationSettings,
    *,
    space: str | None = None,
    mask: str = "brain mask",
    seed: int = 0,
) -> CohortScores:
    """Pool the scores of all subjects.

    Parameters
    ----------
    subjects : sequence of SubjectScores
        Held-out controls and patients. Controls that a detector was fitted on do not belong here.
    settings : EvaluationSettings
    space : str, optional
        ``settings.space`` by default.
    mask : str
        The name of the evaluation mask, for the tables.
    seed : int
        Of the bootstrap.

    Raises
    ------
    UserError
        No subject at all; a key twice.
    """
    subjects = tuple(subjects)
    keys = [subject.key for subject in subjects]
    if not subjects:
        raise UserError("No map was scored, expected at least one. Check that the cohort names patients or controls.")
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise UserError(f"{', '.join(twice)}: scored more than once, expected one map a subject. Drop the others.")
    known = tuple(subject for subject in subjects if subject.truth_known)
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s in known], settings.bootstrap_draws, seed)
    counts = vm.rank_counts([s.histogram for s in known], most_edges=POOLED_EDGES, pooled=True)
    thresholds = _Thresholds.set_on(known, weights, settings)
    estimates = _voxel_estimates(known, counts, weights, settings)
    estimates |= _operating_estimates(known, thresholds, weights, settings)
    froc = None
    if any(s.lesions for s in known):
        froc = froc_curve([s.clusters for s in known], [s.found_at for s in known])
    estimates["froc_score"] = _froc_estimate(known, froc, weights, settings)
    rows = tuple(subject_row(subject, thresholds.point) for subject in subjects)
    return CohortScores(
        estimates, thresholds.point, subjects, rows, counts, froc, settings, space or settings.space, mask
    )


@dataclass(frozen=True, eq=False)
class _Thresholds:
    """The operating point, of all healthy scans, of each bootstrap draw, and without each scan in turn."""

    point: float | None
    why_none: str
    draws: np.ndarray
    without: np.ndarray
    n_healthy: int

    @classmethod
    def set_on(cls, known: Sequence[SubjectScores], weights: np.ndarray, settings: EvaluationSettings):
        healthy = [i for i, subject in enumerate(known) if subject.is_healthy]
        if not healthy:
            return cls(None, _NO_HEALTHY, np.full(len(weights), np.nan, np.float32), np.zeros(0, np.float32), 0)
        curves = [known[i].clusters for i in healthy]
        point = operating_threshold(curves, settings.false_clusters)[0]
        without = np.full(len(healthy), np.nan, np.float32)
        if len(healthy) > 1:
            without = operating_threshold(curves, settings.false_clusters, 1 - np.eye(len(healthy)))
        return cls(
            float(point) if np.isfinite(point) else None,
            _NO_LIMIT,
            operating_threshold(curves, settings.false_clusters, weights[:, healthy]),
            without,
            len(healthy),
        )


def _voxel_estimates(
    known: Sequence[SubjectScores], counts: vm.RankCounts, weights: np.ndarray, settings: EvaluationSettings
) -> dict[str, Estimate]:
    each = vm.rank_counts([s.histogram for s in known], most_edges=BOOTSTRAP_EDGES, pooled=False)
    pooled = {
        "auroc": vm.auroc,
        "auroc_fpr30_normalised": lambda c: vm.area_below_fpr(c, 0.3),
        "auroc_fpr30_mcclish": lambda c: vm.mcclish(vm.area_below_fpr(c, 0.3), 0.3),
        "average_precision": vm.average_precision,
        "prevalence": vm.prevalence,
        "best_dice_pooled": lambda c: vm.best_dice(c)[0],
        "aupro_fpr30": lambda c: vm.area_below_fpr(c, 0.3, per_region=True),
        "aupro_fpr05": lambda c: vm.area_below_fpr(c, 0.05, per_region=True),
    }
    draws: dict[str, list[np.ndarray]] = {name: [] for name in pooled}
    if counts.lesion.sum() > 0:
        # A few draws at a time: 1,000 draws of 16,000 bins at once would take gigabytes.
        for start in range(0, len(weights), 64):
            drawn = each.reweighted(weights[start : start + 64])
            for name, metric in pooled.items():
                draws[name].append(metric(drawn))
    estimates = {}
    with_lesions = sum(s.has_lesions for s in known)
    for name, metric in pooled.items():
        needs_healthy = name not in ("average_precision", "prevalence", "best_dice_pooled")
        estimate = vm.as_estimate(metric(counts), counts, n=len(known), needs_healthy=needs_healthy)
        if name.startswith("aupro") and counts.lesion_weights.sum() == 0:
            estimate = Estimate.undefined("no lesion of the smallest volume that counts")
        if estimate.value is not None:
            estimate = estimate.with_interval(np.concatenate(draws[name]), settings.confidence, subjects=with_lesions)
        estimates[name] = estimate
    per_subject = {
        "auroc_per_subject_mean": [s.auroc.value for s in known],
        "average_precision_per_subject_mean": [s.average_precision.value for s in known],
        "best_dice_per_subject_mean": [s.best_dice.value for s in known],
    }
    for name, values in per_subject.items():
        estimates[name] = mean_over_subjects(values, weights, settings.confidence, why_none=_NO_PATIENT)
    return estimates


def _operating_estimates(
    known: Sequence[SubjectScores], thresholds: _Thresholds, weights: np.ndarray, settings: EvaluationSettings
) -> dict[str, Estimate]:
    names = (
        "healthy_threshold",
        "dice_at_healthy_threshold",
        "dice_at_healthy_threshold_per_subject_mean",
        "lesion_sensitivity",
        "false_clusters_per_subject",
        "false_clusters_per_healthy_subject",
    )
    if thresholds.point is None:
        return {name: Estimate.undefined(thresholds.why_none) for name in names}
    # Column 0 is the operating point itself, the others the draws: each draw sets its own threshold.
    at = np.append(np.float32(thresholds.point), thresholds.draws)
    usable = np.isfinite(at)
    safe = np.where(usable, at, 0)
    flagged = [s.histogram.flagged(safe) for s in known]
    false = np.array([f for f, _ in flagged], dtype=np.float64)
    true = np.array([t for _, t in flagged], dtype=np.float64)
    lesion_voxels = np.array([[s.histogram.n_lesion] for s in known], dtype=np.float64)
    false_clusters = np.array([s.clusters.false_clusters_at(safe) for s in known], dtype=np.float64)
    found = np.array([(s.found_at[:, None] >= safe).sum(axis=0) for s in known], dtype=np.float64)
    lesions = np.array([[len(s.lesions)] for s in known], dtype=np.float64)
    sick = np.array([[s.has_lesions] for s in known], dtype=np.float64)
    all_weights = np.vstack([np.ones(len(known)), weights]).T

    def ratio(above: np.ndarray, below: np.ndarray, n: int, why_none: str, subjects: int) -> Estimate:
        totals = (all_weights * below).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(usable & (totals > 0), (all_weights * above).sum(axis=0) / totals, np.nan)
        if not np.isfinite(values[0]):
            return Estimate.undefined(why_none)
        return Estimate(float(values[0]), n=n).with_interval(values[1:], settings.confidence, subjects=subjects)

    n_sick, n_lesions = int(sick.sum()), int(lesions.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        each_dice = np.where(sick > 0, 2 * true / (true + false + lesion_voxels), 0)
    pooled_below = np.where(lesion_voxels.sum() > 0, true + false + lesion_voxels, 0)
    healthy = [s for s in known if s.is_healthy]
    apart = [
        float(s.clusters.false_clusters_at(t)) if np.isfinite(t) else None
        for s, t in zip(healthy, thresholds.without, strict=True)
    ]
    healthy_weights = weights[:, [i for i, s in enumerate(known) if s.is_healthy]]
    return {
        "healthy_threshold": Estimate(thresholds.point, n=thresholds.n_healthy).with_interval(
            thresholds.draws, settings.confidence, subjects=thresholds.n_healthy
        ),
        "dice_at_healthy_threshold": ratio(2 * true, pooled_below, len(known), _NO_PATIENT, n_sick),
        "dice_at_healthy_threshold_per_subject_mean": ratio(each_dice, sick, n_sick, _NO_PATIENT, n_sick),
        "lesion_sensitivity": ratio(found, lesions, n_lesions, _NO_PATIENT, n_sick),
        "false_clusters_per_subject": ratio(false_clusters * sick, sick, n_sick, _NO_PATIENT, n_sick),
        "false_clusters_per_healthy_subject": mean_over_subjects(
            apart,
            healthy_weights,
            settings.confidence,
            why_none="a single healthy scan sets the threshold, and none is left to count false clusters in",
        ),
    }


def _froc_estimate(
    known: Sequence[SubjectScores],
    froc: tuple[np.ndarray, np.ndarray] | None,
    weights: np.ndarray,
    settings: EvaluationSettings,
) -> Estimate:
    if froc is None:
        return Estimate.undefined(_NO_PATIENT)
    rates = np.array(FROC_RATES)
    value = float(np.mean([sensitivity_at(rate, *froc) for rate in rates]))
    births = np.concatenate([s.clusters.false_births for s in known])
    owners = np.repeat(np.arange(len(known)), [len(s.clusters.false_births) for s in known])
    falling = np.argsort(-births, kind="stable")
    births, owners = births[falling], owners[falling]
    detections = np.concatenate([s.found_at for s in known])
    lesion_owners = np.repeat(np.arange(len(known)), [len(s.found_at) for s in known])
    rising = np.argsort(detections, kind="stable")
    detections, lesion_owners = detections[rising], lesion_owners[rising]
    draws = np.full(len(weights), np.nan)
    for draw, weight in enumerate(weights):
        clusters = np.cumsum(weight[owners])
        # The first false cluster that is one too many for each rate; lesions found above its score are there before.
        first = np.searchsorted(clusters, rates * weight.sum() + 1e-9, side="right")
        limits = np.append(births, -np.inf)[first].astype(np.float32)
        found = np.append(np.cumsum(weight[lesion_owners][::-1])[::-1], 0)
        if found[0] > 0:
            draws[draw] = np.mean(found[np.searchsorted(detections, limits, side="right")]) / found[0]
    with_lesions = sum(bool(s.lesions) for s in known)
    estimate = Estimate(value, n=len(detections))
    return estimate.with_interval(draws, settings.confidence, subjects=with_lesions)


def subject_row(subject: SubjectScores, threshold: float | None) -> SubjectRow:
    """One subject's figures at an operating point."""
    if threshold is None:
        return SubjectRow(subject.key, None, None, None, None, None)
    known = subject.truth_known
    return SubjectRow(
        key=subject.key,
        dice=subject.dice_at(threshold).value,
        clusters=int(subject.clusters.clusters_at(threshold)),
        false_clusters=int(subject.clusters.false_clusters_at(threshold)) if known else None,
        lesions_found=subject.lesions_found_at(threshold) if known and subject.lesions else None,
        flagged_ml=subject.flagged_ml_at(threshold),
    )
