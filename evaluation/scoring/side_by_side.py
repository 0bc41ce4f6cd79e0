"""Several methods on the same subjects, each compared with one of them: tables, lesion groups, sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...data_manifests.errors import UserError
from ..metrics.bootstrap import Estimate, Measure
from ..metrics.lesion_metrics import froc_scores
from ..settings import EvaluationSettings
from .healthy_rates import HEALTHY_FPRS
from .metric_labels import METRICS, MetricLabel
from .operating_point import OperatingPoint
from .score_cohort import CohortScores, bootstrap_weights, score_cohort
from .subject_scores import LesionScore, SubjectScores

FOUND_AT = (1.0, 4.0)
"""False clusters per subject at which the share of the lesions that are found is compared."""
_FOUND = {
    f"found_at_{rate:g}": MetricLabel(
        f"Lesions found at {rate:g} false cluster{'s' if rate > 1 else ''}",
        f"Fraction of lesions found at the threshold with on average {rate:g} false clusters per subject.",
        "lesions",
    )
    for rate in FOUND_AT
}
COLUMNS = (
    "average_precision",
    "average_precision_per_subject_mean",
    "auroc",
    "auroc_fpr30_normalised",
    "aupro_fpr30",
    *_FOUND,
    "froc_score",
    "lesion_sensitivity",
    "false_clusters_per_healthy_subject",
    "dice_at_healthy_threshold",
    "best_dice_pooled",
    "best_dice_one_threshold_per_subject_mean",
    *HEALTHY_FPRS,
    "subject_auroc_maximum",
    "subject_average_precision_maximum",
    "subject_f1_max_maximum",
    "ader_mean",
)
LABELS: Mapping[str, MetricLabel] = {**METRICS, **_FOUND}
TOLD = "average_precision", "found_at_1", "auroc"
"""Metrics on which the difference of each method from the reference is told in words."""
NEAREST_MM = 10.0
"""A lesion of the table of kinds belongs to a lesion of a mask whose centre is no farther away."""


@dataclass(frozen=True, eq=False)
class Contender:
    """One method in one form.

    Attributes
    ----------
    name, title, form : str
    subjects : tuple of SubjectScores
    point : OperatingPoint
        Set on controls.
    """

    name: str
    title: str
    form: str
    subjects: tuple[SubjectScores, ...]
    point: OperatingPoint


@dataclass(frozen=True)
class LesionKind:
    """What a table of lesions says of one of them.

    Attributes
    ----------
    subject : str
    centre_mm : (float, float, float)
        In the space of the scores.
    groups : mapping from column, as "kind", to value
    """

    subject: str
    centre_mm: tuple[float, float, float]
    groups: Mapping[str, str]


@dataclass(frozen=True)
class GroupRow:
    """Share of the lesions of a group that a method finds at one false cluster per subject."""

    by: str
    group: str
    method: str
    found: Estimate


@dataclass(frozen=True, eq=False)
class Row:
    """Metrics of one method in one form, and their differences from the reference.

    Attributes
    ----------
    contender : Contender
    scores : CohortScores
    measures : mapping from name to Measure
        Those of `COLUMNS`.
    differences : mapping from name to Estimate
        This minus the reference, paired by subject; empty for the reference.
    """

    contender: Contender
    scores: CohortScores
    measures: Mapping[str, Measure]
    differences: Mapping[str, Estimate]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Values with their intervals, by name."""
        return {name: measure.estimate() for name, measure in self.measures.items()}


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Methods compared on the subjects that all of them have scored.

    Attributes
    ----------
    reference : str
        Name of the method that the others are compared with.
    rows : tuple of Row
        The chosen form of each method, in the given order.
    every_form : tuple of Row
        All forms.
    groups : tuple of GroupRow
    subjects, left_out : tuple of str
        Compared subjects, and those that not every method has scored.
    """

    reference: str
    rows: tuple[Row, ...]
    every_form: tuple[Row, ...]
    groups: tuple[GroupRow, ...]
    subjects: tuple[str, ...]
    left_out: tuple[str, ...]


def compare_side_by_side(
    contenders: Sequence[Contender],
    chosen: Mapping[str, str],
    reference: str,
    settings: EvaluationSettings,
    *,
    seed: int = 0,
    kinds: Sequence[LesionKind] = (),
) -> SideBySide:
    """Compare methods on their common subjects.

    Parameters
    ----------
    contenders : sequence of Contender
        Every form of every method.
    chosen : mapping from method to form
    reference : str
        One of the methods.
    settings : EvaluationSettings
    seed : int
        Of the bootstrap, the same samples for all methods.
    kinds : sequence of LesionKind

    Raises
    ------
    UserError
        The methods have no subject in common.
    """
    keys = [subject.key for subject in contenders[0].subjects]
    scored = [{subject.key: subject for subject in c.subjects} for c in contenders]
    common = [key for key in keys if all(key in own for own in scored)]
    if not common:
        raise UserError("rivals: the methods have no subject in common, expected some. See failures.csv.")
    every = sorted(set().union(*scored) - set(common))
    rows = []
    for contender, own in zip(contenders, scored, strict=True):
        subjects = [own[key] for key in common]
        scores = score_cohort(subjects, settings, seed=seed, point=contender.point, with_strata=False)
        measures = {**scores.measures, **_found_at(scores, seed)}
        rows.append(Row(contender, scores, {name: measures[name] for name in COLUMNS if name in measures}, {}))
    own = next(row for row in rows if row.contender.name == reference)
    every_form = tuple(row if row is own else _compared(row, own) for row in rows)
    best = tuple(row for row in every_form if row.contender.form == chosen[row.contender.name])
    groups = tuple(group for row in best for group in _groups(row, kinds, seed))
    return SideBySide(reference, best, every_form, groups, tuple(common), tuple(every))


def differences_in_words(table: SideBySide) -> list[str]:
    """Say for each metric of `TOLD` which methods differ from the reference with certainty, and which do not."""
    reference = next(row for row in table.rows if row.contender.name == table.reference)
    sentences = []
    for name in TOLD:
        value = reference.estimates[name].value
        if value is None:
            continue
        lower, higher, open_ = [], [], []
        for row in table.rows:
            difference = row.differences.get(name)
            if difference is None or difference.value is None:
                continue
            text = f"{row.contender.name} ({_number(row.estimates[name].value)}"
            if difference.ci_low is None or difference.ci_high is None:
                open_.append(f"{text})")
                continue
            text += f"; difference {_number(difference.value)}, {_number(difference.ci_low)} to "
            text += f"{_number(difference.ci_high)})"
            (lower if difference.ci_high < 0 else higher if difference.ci_low > 0 else open_).append(text)
        label = LABELS[name].label
        told = f"{label}: {table.reference} has {_number(value)}."
        told += f" Certainly higher: {', '.join(higher)}." if higher else " No method is certainly higher."
        told += f" Certainly lower: {', '.join(lower)}." if lower else " No method is certainly lower."
        told += f" No difference is shown for {', '.join(open_)}." if open_ else ""
        sentences.append(told)
    return sentences


def _compared(row: Row, reference: Row) -> Row:
    differences = {
        name: measure.minus(reference.measures[name]).estimate()
        for name, measure in row.measures.items()
        if name in reference.measures
    }
    return Row(row.contender, row.scores, row.measures, differences)


def _weights(scores: CohortScores, seed: int) -> tuple[list[SubjectScores], np.ndarray]:
    known = [s for s in scores.subjects if s.truth_known]
    return known, bootstrap_weights(known, scores.settings.bootstrap_draws, seed)


def _found_at(scores: CohortScores, seed: int) -> dict[str, Measure]:
    known, weights = _weights(scores, seed)
    return {
        f"found_at_{rate:g}": _found(known, [s.found_at for s in known], weights, rate, "no lesion")
        for rate in FOUND_AT
    }


def _found(
    known: Sequence[SubjectScores], found: Sequence[np.ndarray], weights: np.ndarray, rate: float, why_none: str
) -> Measure:
    """Share of the lesions with these scores that are found at a rate of false clusters per subject."""
    most = int(np.ceil(rate * len(known))) + 1
    thresholds = [s.clusters.false_cluster_thresholds[:most] for s in known]
    values = froc_scores(thresholds, found, weights, at=(rate,))
    n = sum(len(own) for own in found)
    return Measure(float(values[0]), values[1:], n, sum(len(own) > 0 for own in found), why_none)


def _groups(row: Row, kinds: Sequence[LesionKind], seed: int) -> list[GroupRow]:
    """Share of the lesions found at one false cluster, by size and by the columns of the table of lesions."""
    known, weights = _weights(row.scores, seed)
    bounds = row.scores.settings.lesion_bands_ml
    names = [f"below {bounds[0]:g} ml", *(f"{a:g} to {b:g} ml" for a, b in pairwise(bounds))]
    names.append(f"{bounds[-1]:g} ml and more")
    by: dict[str, list[list[str | None]]] = {
        "size": [[names[int(np.digitize(lesion.volume_mm3 / 1000, bounds))] for lesion in s.lesions] for s in known]
    }
    for column in dict.fromkeys(column for kind in kinds for column in kind.groups):
        by[column] = [[_group_of(s.key, lesion, kinds, column) for lesion in s.lesions] for s in known]
    rows = []
    for column, groups in by.items():
        order = names if column == "size" else sorted({group for own in groups for group in own if group})
        for group in order:
            found = [
                s.found_at[np.array([other == group for other in own], bool)]
                for s, own in zip(known, groups, strict=True)
            ]
            if any(len(own) for own in found):
                measure = _found(known, found, weights, FOUND_AT[0], "no lesion")
                rows.append(GroupRow(column, group, row.contender.name, measure.estimate()))
    return rows


def _group_of(subject: str, lesion: LesionScore, kinds: Sequence[LesionKind], column: str) -> str | None:
    """Value of a column for a lesion: that of the nearest lesion of the table."""
    own = [kind for kind in kinds if kind.subject == subject and column in kind.groups]
    distances = [float(np.linalg.norm(np.subtract(kind.centre_mm, lesion.centre_mm))) for kind in own]
    if not distances or min(distances) > NEAREST_MM:
        return None
    return own[int(np.argmin(distances))].groups[column]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"
