"""Voxel-wise metrics of a cohort, with their values in every bootstrap sample.

The stored histograms of the subjects are read one at a time and put on common bins; the maps are not read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import kernels
from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Measure, mean_over_subjects
from .subject_scores import SubjectScores

POOLED_EDGES = 2**20
"""Pooled metrics are exact up to this many distinct lesion scores; beyond, the error is below 1e-6."""
BOOTSTRAP_EDGES, BOOTSTRAP_CELLS = 2**13, 2**20
"""Limits for the bootstrap: number of bin edges, and number of edges times subjects."""
_DRAWS_AT_ONCE = 64

NO_PATIENT = "no subject with lesions in its lesion mask"
NO_HEALTHY = "no healthy scan in this cohort"
_TOO_SMALL = "no lesion of at least the smallest volume"
_FEWEST_HEALTHY_VOXELS = 10**5
_UNRESOLVED = f"fewer than {_FEWEST_HEALTHY_VOXELS:,} healthy voxels do not resolve a false-positive rate of 1e-5"


@dataclass(frozen=True, eq=False)
class VoxelMeasures:
    """Voxel-wise metrics of some subjects.

    Attributes
    ----------
    measures : dict of str to Measure
    counts : RankCounts
        Counts of all voxels pooled.
    each : RankCounts
        One row of counts per subject, on coarser bins, for the bootstrap.
    aupimo : mapping of str to float
        AUPIMO of each subject with lesions, by key; empty if undefined.
    """

    measures: dict[str, Measure]
    counts: vm.RankCounts
    each: vm.RankCounts
    aupimo: dict[str, float]


def voxel_measures(known: Sequence[SubjectScores], weights: np.ndarray) -> VoxelMeasures:
    """Compute pooled metrics, means over subjects, and AUPIMO.

    Parameters
    ----------
    known : sequence of S SubjectScores
        Subjects with known truth.
    weights : ndarray, (1 + draws, S)
        From `resample_subjects`.
    """
    n_scores = sum(s.n_lesion_scores for s in known)
    edges = vm.common_edges((s.curves.lesion_voxels[0] for s in known), max(-(-n_scores // POOLED_EDGES), 1))
    most_coarse = min(BOOTSTRAP_EDGES, max(BOOTSTRAP_CELLS // max(len(known), 1), 1))
    coarse = edges[:: -max(-(-len(edges) // most_coarse), 1)][::-1].copy()
    counts, each = vm.RankCounts.empty(edges), vm.RankCounts.empty(coarse, len(known))
    healthy_shares, summed_dice = np.zeros(counts.healthy.shape), np.zeros(len(edges))
    for row, subject in enumerate(known):
        histogram = subject.histogram
        counts.add(histogram, edges)
        each.add(histogram, coarse, row)
        if subject.has_lesions:
            healthy = histogram.healthy_scores, histogram.healthy_counts
            kernels.add_dice(edges, *healthy, histogram.lesion_scores, histogram.lesion_counts, summed_dice)
        if subject.is_healthy:
            shares = histogram.healthy_counts / histogram.n_healthy
            kernels.add_between(edges, histogram.healthy_scores, shares, healthy_shares)
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
    draws = {name: np.full(len(weights) - 1, np.nan) for name in pooled}
    if counts.lesion.sum() > 0:
        # Work in batches: 1,000 samples of 16,000 bins at once would take gigabytes.
        for start in range(0, len(weights) - 1, _DRAWS_AT_ONCE):
            drawn = each.reweighted(weights[1 + start : 1 + start + _DRAWS_AT_ONCE])
            for name, metric in pooled.items():
                draws[name][start : start + _DRAWS_AT_ONCE] = metric(drawn)
    with_lesions = sum(s.has_lesions for s in known)
    measures = {}
    for name, metric in pooled.items():
        needs_no_healthy = name in ("average_precision", "prevalence", "best_dice_pooled")
        why_none = vm.why_undefined(counts, needs_healthy=not needs_no_healthy) or ""
        if name.startswith("aupro") and not why_none and counts.lesion_weights.sum() == 0:
            why_none = _TOO_SMALL
        value = np.nan if why_none else float(metric(counts))
        measures[name] = Measure(value, draws[name], len(known), with_lesions, why_none)
    per_subject = {
        "auroc_per_subject_mean": [s.auroc.value for s in known],
        "average_precision_per_subject_mean": [s.average_precision.value for s in known],
        "best_dice_per_subject_mean": [s.best_dice.value for s in known],
    }
    for name, values in per_subject.items():
        measures[name] = mean_over_subjects(values, weights, why_none=NO_PATIENT)
    has_lesions = np.array([s.has_lesions for s in known], dtype=bool)
    measures["best_dice_one_threshold_per_subject_mean"] = _best_mean_dice(summed_dice, has_lesions, each, weights)
    measures["aupimo"], aupimo = _aupimo(known, edges, healthy_shares, each, weights)
    return VoxelMeasures(measures, counts, each, aupimo)


def _best_mean_dice(summed: np.ndarray, has_lesions: np.ndarray, each: vm.RankCounts, weights: np.ndarray) -> Measure:
    """Mean Dice of the subjects with lesions, at the threshold common to all at which it is highest."""
    n = int(has_lesions.sum())
    dice = vm.dice_by_threshold(each)[has_lesions]
    draws = []
    for start in range(1, len(weights), _DRAWS_AT_ONCE):
        drawn = weights[start : start + _DRAWS_AT_ONCE, has_lesions]
        with np.errstate(invalid="ignore", divide="ignore"):
            draws.append((drawn @ dice).max(axis=1) / drawn.sum(axis=1))
    value = float(summed.max() / n) if n else np.nan
    return Measure(value, np.concatenate([np.zeros(0), *draws]), n, n, NO_PATIENT)


def _aupimo(
    known: Sequence[SubjectScores],
    edges: np.ndarray,
    healthy_shares: np.ndarray,
    each: vm.RankCounts,
    weights: np.ndarray,
) -> tuple[Measure, dict[str, float]]:
    """AUPIMO of the cohort and of each subject with lesions; see `aupimo_credit`."""
    has_lesions = np.array([s.has_lesions for s in known], dtype=bool)
    healthy = np.array([s.is_healthy for s in known], dtype=bool)
    undefined = np.full(len(weights) - 1, np.nan)
    why_none = NO_PATIENT if not has_lesions.any() else NO_HEALTHY if not healthy.any() else ""
    if not why_none and each.healthy[healthy].sum() < _FEWEST_HEALTHY_VOXELS:
        why_none = _UNRESOLVED
    if why_none:
        return Measure(np.nan, undefined, 0, 0, why_none), {}
    credit = vm.aupimo_credit(vm.false_positive_rates(healthy_shares))
    values = {}
    for subject in (s for s in known if s.has_lesions):
        lesion = np.zeros(len(credit))
        kernels.add_between(edges, *subject.curves.lesion_voxels, lesion)
        values[subject.key] = float(lesion @ credit / subject.n_lesion)
    # Healthy subjects and subjects with lesions are both resampled.
    shares = each.healthy[healthy] / each.healthy[healthy].sum(axis=1, keepdims=True)
    recalls = each.lesion[has_lesions] / each.lesion[has_lesions].sum(axis=1, keepdims=True)
    draws = []
    for start in range(1, len(weights), _DRAWS_AT_ONCE):
        drawn = weights[start : start + _DRAWS_AT_ONCE]
        rates = vm.false_positive_rates(drawn[:, healthy] @ shares)
        own = vm.aupimo_credit(rates) @ recalls.T
        with np.errstate(invalid="ignore", divide="ignore"):
            draws.append((own * drawn[:, has_lesions]).sum(axis=1) / drawn[:, has_lesions].sum(axis=1))
    n = int(has_lesions.sum())
    subjects = min(n, int(healthy.sum()))
    value = float(np.mean(list(values.values())))
    return Measure(value, np.concatenate([np.zeros(0), *draws]), n, subjects, ""), values
