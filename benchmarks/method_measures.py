"""Detection metrics of anomaly maps for each kind of simulated lesion, with bootstrap intervals over subjects.

Maps are arrays over the voxels of a `VoxelMask`, in template or native space; in template space, only the truth is
resampled. Healthy voxels are those of the painted scans outside lesions, and all voxels of the healthy scans. For one
kind of lesion, the other lesions and a rim around them are excluded. A false cluster touches no lesion of any kind, so
the same threshold applies to all kinds. The definitions are those of `voxout.evaluation`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from method_cohort import LABELS
from method_subjects import ALL, Subject, TestSet
from scipy.stats import norm
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics import voxel_metrics as vm
from voxout.evaluation.metrics.bootstrap import Measure, mean_over_subjects, resample_subjects
from voxout.evaluation.metrics.clusters import find_clusters
from voxout.evaluation.metrics.lesion_metrics import ClusterCurve, cluster_curve, froc_scores
from voxout.evaluation.settings import EvaluationSettings

RATES = (1.0, 4.0)
"""False clusters per subject at which the fraction of detected lesions is evaluated."""
Z_OF_ONE_IN_THOUSAND = float(norm.isf(0.001))
SETTINGS = EvaluationSettings()
_EDGES_OF_DRAWS = 4096
_DRAWS_AT_ONCE = 64


# -- figures -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Figures:
    """Detection metrics for one kind of lesion; higher is better. NaN if there are no such lesions."""

    average_precision: Measure
    average_precision_per_subject: Measure
    auroc: Measure
    auroc_fpr30: Measure
    found_at_1: Measure
    found_at_4: Measure
    prevalence: Measure


@dataclass(frozen=True, eq=False)
class MethodFigures:
    """Metrics of one method on one `TestSet`.

    Attributes
    ----------
    name : str
    kinds : mapping from kind to Figures
        `ALL` and the names of the kinds.
    patients_auroc : Measure
        Mean AUROC over the real patients.
    """

    name: str
    kinds: Mapping[str, Figures]
    patients_auroc: Measure

    def minus(self, other: "MethodFigures") -> "MethodFigures":
        """Paired differences; both must come from `evaluate` on the same subjects and with the same seed."""
        return self._joined(f"{self.name} - {other.name}", lambda measures: measures[0].minus(measures[1]), other)

    def averaged_with(self, *others: "MethodFigures", name: str) -> "MethodFigures":
        """Mean over trainings of one method, for each bootstrap sample."""
        return self._joined(name, _mean, *others)

    def _joined(
        self, name: str, join: Callable[[Sequence[Measure]], Measure], *others: "MethodFigures"
    ) -> "MethodFigures":
        every = (self, *others)
        kinds = {
            kind: Figures(
                *(join([getattr(method.kinds[kind], field.name) for method in every]) for field in fields(Figures))
            )
            for kind in self.kinds
        }
        return MethodFigures(name, kinds, join([method.patients_auroc for method in every]))


def evaluate(
    name: str,
    scores: Mapping[str, np.ndarray],
    test: TestSet,
    *,
    draws: int = SETTINGS.bootstrap_draws,
    seed: int = 0,
) -> MethodFigures:
    """Compute all metrics of one method.

    Parameters
    ----------
    name : str
    scores : mapping from subject's key to ndarray, (P,)
        Anomaly scores, higher = more anomalous. Non-finite scores rank below all others.
    test : TestSet
    draws : int
        Number of bootstrap samples over subjects, stratified by painted and healthy.
    seed : int
        Use the same seed for methods to be compared.
    """
    subjects = test.subjects
    weights = resample_subjects([bool(s.lesions.any()) for s in subjects], draws, seed)
    most = int(np.ceil(max(RATES) * len(subjects))) + 1
    curves = [_clusters(_ranked(scores[s.key]), s) for s in subjects]
    false_cluster_thresholds = [curve.false_cluster_thresholds[:most] for curve, _ in curves]
    kinds = {}
    for kind in (ALL, *LABELS):
        histograms = [_histogram(_ranked(scores[s.key]), s, kind) for s in subjects]
        found = [
            at if kind == ALL else at[s.kind_of == LABELS[kind]] for s, (_, at) in zip(subjects, curves, strict=True)
        ]
        kinds[kind] = _figures(histograms, false_cluster_thresholds, found, weights)
    areas = [_own(vm.auroc, _histogram(_ranked(scores[s.key]), s, ALL)) for s in test.patients]
    once = np.ones((1 + draws, len(areas)))
    return MethodFigures(name, kinds, mean_over_subjects(areas, once, why_none=_NO_LESION))


_NO_LESION = "no such lesion"


def joined_by_kind(methods: Mapping[str, MethodFigures], name: str) -> MethodFigures:
    """Take the figures of each kind from a method of its own; those of `ALL` are the mean over the kinds."""
    kinds = {kind: method.kinds[kind] for kind, method in methods.items()}
    each = [*kinds.values()]
    kinds[ALL] = Figures(*(_mean([getattr(one, field.name) for one in each]) for field in fields(Figures)))
    return MethodFigures(name, kinds, _mean([method.patients_auroc for method in methods.values()]))


def _figures(
    histograms: Sequence[vm.ScoreHistogram],
    false_cluster_thresholds: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    weights: np.ndarray,
) -> Figures:
    with_lesions = sum(h.n_lesion > 0 for h in histograms)
    pooled = {
        "average_precision": vm.average_precision,
        "auroc": vm.auroc,
        "auroc_fpr30": lambda counts: vm.area_below_fpr(counts, 0.3),
        "prevalence": vm.prevalence,
    }
    exact = vm.rank_counts(histograms, vm.common_edges(h.lesion_scores for h in histograms))
    n_scores = sum(len(h.lesion_scores) for h in histograms)
    coarse = vm.common_edges((h.lesion_scores for h in histograms), max(-(-n_scores // _EDGES_OF_DRAWS), 1))
    each = vm.RankCounts.empty(coarse, len(histograms))
    for row, histogram in enumerate(histograms):
        each.add(histogram, coarse, row)
    drawn = {name: [] for name in pooled}
    for start in range(1, len(weights), _DRAWS_AT_ONCE):
        counts = each.reweighted(weights[start : start + _DRAWS_AT_ONCE])
        for name, metric in pooled.items():
            drawn[name].append(metric(counts))
    measures = {
        name: Measure(float(metric(exact)), np.concatenate(drawn[name]), len(histograms), with_lesions, _NO_LESION)
        for name, metric in pooled.items()
    }
    own = [_own(vm.average_precision, h) for h in histograms]
    measures["average_precision_per_subject"] = mean_over_subjects(own, weights, why_none=_NO_LESION)
    for rate in RATES:
        values = froc_scores(false_cluster_thresholds, found, weights, at=(rate,))
        n = sum(len(scores) for scores in found)
        measures[f"found_at_{rate:g}"] = Measure(float(values[0]), values[1:], n, with_lesions, _NO_LESION)
    return Figures(**measures)


def _own(metric: Callable[[vm.RankCounts], np.ndarray], histogram: vm.ScoreHistogram) -> float | None:
    """Metric of one subject; None without lesions."""
    if not histogram.n_lesion:
        return None
    return float(metric(vm.rank_counts([histogram], vm.common_edges([histogram.lesion_scores]))))


def _histogram(scores: np.ndarray, subject: Subject, kind: str) -> vm.ScoreHistogram:
    used, truth = subject.evaluated[kind]
    return vm.ScoreHistogram.from_voxels(scores[used], truth)


def _clusters(scores: np.ndarray, subject: Subject) -> tuple[ClusterCurve, np.ndarray]:
    """Clusters of a map at every threshold, and the threshold at which each lesion is detected."""
    volume = subject.mask.inverse_transform(np.where(subject.inside, scores, -np.inf).astype(np.float32), fill=-np.inf)
    smallest = int(np.ceil(SETTINGS.smallest_cluster_mm3 / subject.mask.grid.voxel_volume_mm3 - 1e-6))
    curve, found, _ = cluster_curve(volume, subject.mask.inverse_transform(subject.lesions), smallest_voxels=smallest)
    return curve, found


def _ranked(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)


def _mean(measures: Sequence[Measure]) -> Measure:
    first = measures[0]
    value, draws = (np.mean([getattr(m, part) for m in measures], axis=0) for part in ("value", "draws"))
    return Measure(float(value), draws, first.n, first.subjects, first.why_none)


# -- calibration -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of a method on healthy held-out subjects.

    Attributes
    ----------
    share_below_p001 : Measure
        Fraction of the brain voxels with p < .001; the nominal value is .001.
    false_clusters : Measure
        Mean number per subject at the given threshold.
    """

    share_below_p001: Measure
    false_clusters: Measure


def calibration(
    z_maps: Mapping[str, np.ndarray],
    healthy: Sequence[Subject],
    threshold: float,
    *,
    draws: int = SETTINGS.bootstrap_draws,
    seed: int = 0,
) -> Calibration:
    """Compute the calibration on healthy held-out subjects.

    Parameters
    ----------
    z_maps : mapping from subject's key to ndarray, (P,)
        Standard normal in healthy tissue; higher = more anomalous.
    healthy : sequence of Subject
    threshold : float
        Threshold in z, from `--false-clusters` on other healthy subjects.
    draws, seed
        For the bootstrap over subjects.
    """
    weights = resample_subjects([0] * len(healthy), draws, seed)
    shares, clusters = [], []
    for subject in healthy:
        scores = _ranked(z_maps[subject.key])
        shares.append(float((scores[subject.inside] > Z_OF_ONE_IN_THOUSAND).mean()))
        volume = subject.mask.inverse_transform(scores, -np.inf)
        inside = subject.mask.inverse_transform(subject.inside)
        found = find_clusters(
            Volume(volume, subject.mask.grid),
            threshold,
            Volume(inside, subject.mask.grid),
            smallest_mm3=SETTINGS.smallest_cluster_mm3,
        )
        clusters.append(float(len(found)))
    no_healthy = "no healthy subject"
    return Calibration(
        mean_over_subjects(shares, weights, why_none=no_healthy),
        mean_over_subjects(clusters, weights, why_none=no_healthy),
    )


# -- tables ------------------------------------------------------------------------------------------------------------
def table(methods: Sequence[MethodFigures], kind: str = ALL) -> str:
    """Markdown table for one kind of lesion, one row per method, with intervals in brackets."""
    lines = [
        f"| {kind} | pooled AP | AP per subject | AUROC | AUROC30 | found at 1 | found at 4 | MS: AUROC |",
        "|" + "---|" * 8,
    ]
    for method in methods:
        cells = [
            cell(getattr(method.kinds[kind], field.name)) for field in fields(Figures) if field.name != "prevalence"
        ]
        lines.append(f"| {method.name} | " + " | ".join([*cells, cell(method.patients_auroc)]) + " |")
    if methods:
        first = methods[0].kinds[kind]
        lines += ["", f"Prevalence {cell(first.prevalence)}; {first.found_at_1.n} lesions."]
    return "\n".join(lines) + "\n"


def overview(methods: Sequence[MethodFigures], figure: str) -> str:
    """Markdown table of one metric of `Figures` for every kind, one row per method."""
    kinds = (ALL, *LABELS)
    lines = [f"| {figure.replace('_', ' ')} | " + " | ".join(kinds) + " |", "|" + "---|" * (1 + len(kinds))]
    for method in methods:
        cells = [cell(getattr(method.kinds[kind], figure)) for kind in kinds]
        lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(measure: Measure) -> str:
    """A value and its interval; a dash if undefined."""
    estimate = measure.estimate()
    if estimate.value is None:
        return "-"
    text = _number(estimate.value)
    if estimate.ci_low is not None and estimate.ci_high is not None:
        text += f" ({_number(estimate.ci_low)} to {_number(estimate.ci_high)})"
    return text


def _number(value: float) -> str:
    """Format with three decimals, or two significant digits for small numbers."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.2g}"
