"""How well maps of a method find the painted lesions, kind by kind, with intervals over subjects.

Maps are compared as arrays over the locations of a `VoxelMask`, that of the template or a subject's own: on the
template's, nothing is resampled but the truth. The healthy side are the healthy voxels of the painted heads and all of
the healthy heads. For one kind of lesion, the others and a rim around them are left out; a false cluster touches no
lesion of any kind, so one threshold serves all kinds. The definitions are those of `voxout.evaluation`.
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
"""False clusters a subject at which lesions found are counted."""
Z_OF_ONE_IN_THOUSAND = float(norm.isf(0.001))
SETTINGS = EvaluationSettings()
_EDGES_OF_DRAWS = 4096
_DRAWS_AT_ONCE = 64


# -- figures -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Figures:
    """How well one kind of lesion is found; higher is better. NaN where there is none of it."""

    average_precision: Measure
    average_precision_per_subject: Measure
    auroc: Measure
    auroc_fpr30: Measure
    found_at_1: Measure
    found_at_4: Measure
    prevalence: Measure


@dataclass(frozen=True, eq=False)
class MethodFigures:
    """One method on one `TestSet`.

    Attributes
    ----------
    name : str
    kinds : mapping from kind to Figures
        `ALL` and the names of the kinds.
    patients_auroc : Measure
        Mean over the real patients.
    """

    name: str
    kinds: Mapping[str, Figures]
    patients_auroc: Measure

    def minus(self, other: "MethodFigures") -> "MethodFigures":
        """The differences, paired draw by draw; both must come from `judge` on the same subjects with one seed."""
        return self._joined(f"{self.name} - {other.name}", lambda measures: measures[0].minus(measures[1]), other)

    def averaged_with(self, *others: "MethodFigures", name: str) -> "MethodFigures":
        """The mean over trainings of one method, draw by draw."""
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


def judge(
    name: str,
    scores: Mapping[str, np.ndarray],
    test: TestSet,
    *,
    draws: int = SETTINGS.bootstrap_draws,
    seed: int = 0,
) -> MethodFigures:
    """All figures of one method.

    Parameters
    ----------
    name : str
    scores : mapping from subject's key to ndarray, (P,)
        Higher = more anomalous; not finite: no score, which ranks below all others.
    test : TestSet
    draws : int
        Of the bootstrap over subjects, painted and healthy ones apart.
    seed : int
        The same for methods that are to be compared.
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
    """A figure of one subject; None without lesions."""
    if not histogram.n_lesion:
        return None
    return float(metric(vm.rank_counts([histogram], vm.common_edges([histogram.lesion_scores]))))


def _histogram(scores: np.ndarray, subject: Subject, kind: str) -> vm.ScoreHistogram:
    counts, truth = subject.judged[kind]
    return vm.ScoreHistogram.from_voxels(scores[counts], truth)


def _clusters(scores: np.ndarray, subject: Subject) -> tuple[ClusterCurve, np.ndarray]:
    """The clusters of a map at every threshold, and where each lesion is found."""
    volume = subject.grid.scatter(np.where(subject.inside, scores, -np.inf).astype(np.float32), fill=-np.inf)
    smallest = int(np.ceil(SETTINGS.smallest_cluster_mm3 / subject.grid.grid.voxel_volume_mm3 - 1e-6))
    curve, found, _ = cluster_curve(volume, subject.grid.scatter(subject.lesions), smallest_voxels=smallest)
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
    """What a calibrated map makes of brains that are healthy and unseen.

    Attributes
    ----------
    share_below_p001 : Measure
        Of the brain's voxels with p < .001; .001 is right.
    false_clusters : Measure
        In a brain, on average, at the threshold given.
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
    """Read calibration off healthy subjects that had no part in it.

    Parameters
    ----------
    z_maps : mapping from subject's key to ndarray, (P,)
        Standard normal in healthy tissue; higher = more anomalous.
    healthy : sequence of Subject
    threshold : float
        In z; what `--false-clusters` came to on other healthy brains.
    draws, seed
        Of the bootstrap over subjects.
    """
    weights = resample_subjects([0] * len(healthy), draws, seed)
    shares, clusters = [], []
    for subject in healthy:
        scores = _ranked(z_maps[subject.key])
        shares.append(float((scores[subject.inside] > Z_OF_ONE_IN_THOUSAND).mean()))
        map, inside = subject.grid.scatter(scores, -np.inf), subject.grid.scatter(subject.inside)
        found = find_clusters(
            Volume(map, subject.grid.grid),
            threshold,
            Volume(inside, subject.grid.grid),
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
    """One kind of lesion, a row a method, as Markdown; in brackets the interval."""
    lines = [
        f"| {kind} | pooled AP | AP a subject | AUROC | AUROC30 | found at 1 | found at 4 | MS: AUROC |",
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
    """One figure of `Figures` for every kind, a row a method, as Markdown."""
    kinds = (ALL, *LABELS)
    lines = [f"| {figure.replace('_', ' ')} | " + " | ".join(kinds) + " |", "|" + "---|" * (1 + len(kinds))]
    for method in methods:
        cells = [cell(getattr(method.kinds[kind], figure)) for kind in kinds]
        lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(measure: Measure) -> str:
    """A number and its interval; a dash where it is not defined."""
    estimate = measure.estimate(SETTINGS.confidence)
    if estimate.value is None:
        return "-"
    text = _number(estimate.value)
    if estimate.ci_low is not None and estimate.ci_high is not None:
        text += f" ({_number(estimate.ci_low)} to {_number(estimate.ci_high)})"
    return text


def _number(value: float) -> str:
    """Three digits; more for what is small, as an AP near the prevalence is."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.2g}"
