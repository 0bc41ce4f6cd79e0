"""Tables of the cohort report: subjects, strata and reference runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics.bootstrap import Estimate
from ..scoring.metric_labels import METRICS, is_oracle
from ..scoring.reference_results import RunScores
from ..scoring.score_cohort import CohortScores, SubjectRow
from .report_inputs import CohortReport, ReportSubject

STRATUM_METRICS = (
    "auroc_per_subject_mean",
    "average_precision_per_subject_mean",
    "dice_at_healthy_threshold_per_subject_mean",
    "lesion_sensitivity",
    "false_clusters_per_healthy_subject",
)


@dataclass(frozen=True)
class TableLine:
    """Row of the table of subjects; None where a value does not apply."""

    subject: ReportSubject
    lesions: int | None
    lesion_ml: float | None
    auroc: Estimate | None
    average_precision: Estimate | None
    best_dice: Estimate | None
    row: SubjectRow | None

    @property
    def clusters(self) -> int | None:
        """Connected clusters at the threshold: those of the subject's page or, without one, those that were scored."""
        if self.subject.findings is not None:
            return self.subject.findings.clusters
        return self.row.clusters if self.row is not None else None


def table_line(subject: ReportSubject, row: SubjectRow | None) -> TableLine:
    """Collect the values of a subject for the table."""
    scores = subject.scores
    if scores is None:
        return TableLine(subject, None, None, None, None, None, row)
    lesions = len(scores.lesions) if scores.truth_known and not scores.is_healthy else None
    volume = scores.lesion_volume_ml if lesions is not None else None
    return TableLine(subject, lesions, volume, scores.auroc, scores.average_precision, scores.best_dice, row)


def columns_with_values(lines: Sequence[TableLine]) -> set[str]:
    """Names of the columns of the table of subjects that hold a value in any row."""
    values = {
        "site": [line.subject.site for line in lines],
        "age": [line.subject.age if line.subject.age is not None else line.subject.sex for line in lines],
        "quality": [line.subject.quality_verdict for line in lines],
        "brain": [line.subject.brain_volume_ml for line in lines],
        "clusters": [line.clusters for line in lines],
        "findings": [line.subject.findings for line in lines],
        "highest": [line.subject.scores for line in lines],
        "lesion": [line.lesion_ml for line in lines],
        "found": [line.row and line.row.lesions_found for line in lines],
        "auroc": [line.auroc and line.auroc.value for line in lines],
        "ap": [line.average_precision and line.average_precision.value for line in lines],
        "best_dice": [line.best_dice and line.best_dice.value for line in lines],
        "dice": [line.row and line.row.dice for line in lines],
        "false": [line.row and line.row.false_clusters for line in lines],
        "flagged": [line.row and line.row.flagged_ml for line in lines],
    }
    return {name for name, column in values.items() if any(value is not None and value != "" for value in column)}


def reading_order(subject: ReportSubject) -> tuple[bool, bool]:
    """Sort key: patients first, then scored controls, then controls used for training."""
    return subject.group != "patient", subject.scores is None


def subject_table(lines: Sequence[TableLine]) -> list[dict[str, object]]:
    """Rows of the CSV file of the cohort table."""
    return [
        {
            "subject": line.subject.key,
            "role": line.subject.role,
            "group": line.subject.group,
            "site": line.subject.site,
            "age": line.subject.age,
            "sex": line.subject.sex,
            "quality": line.subject.quality_verdict,
            "quality_reasons": "; ".join(line.subject.quality_reasons),
            "brain_ml": line.subject.brain_volume_ml,
            "lesions": line.lesions,
            "lesion_ml": line.lesion_ml,
            "auroc": line.auroc.value if line.auroc else None,
            "average_precision": line.average_precision.value if line.average_precision else None,
            "best_dice_oracle": line.best_dice.value if line.best_dice else None,
            "dice_at_healthy_threshold": line.row.dice if line.row else None,
            "lesions_found": line.row.lesions_found if line.row else None,
            "false_clusters": line.row.false_clusters if line.row else None,
            "flagged_ml": line.row.flagged_ml if line.row else None,
            "clusters": line.clusters,
            "findings": line.subject.findings.findings if line.subject.findings else None,
            "clusters_ml": line.subject.findings.volume_ml if line.subject.findings else None,
            "highest_score": line.subject.scores.highest_score if line.subject.scores else None,
            "page": line.subject.page,
        }
        for line in lines
    ]


@dataclass(frozen=True)
class StratumTable:
    """Metrics of the strata of one kind that are defined for at least one of them.

    Attributes
    ----------
    by : str
        Kind of the strata, for example "age".
    labels : tuple of str
        Labels of the metrics.
    lines : tuple of (name, estimates)
        One estimate per label; None if a metric does not apply.
    """

    by: str
    labels: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Estimate | None, ...]], ...]


def stratum_tables(scores: CohortScores | None) -> list[StratumTable]:
    """One table per kind of strata with more than one stratum; strata without any metric are left out."""
    if scores is None:
        return []
    tables = []
    for by in dict.fromkeys(stratum.by for stratum in scores.strata):
        estimates = {
            stratum.name: {n: stratum.measures[n].estimate() for n in STRATUM_METRICS if n in stratum.measures}
            for stratum in scores.strata
            if stratum.by == by
        }
        defined = {name: own for name, own in estimates.items() if any(e.value is not None for e in own.values())}
        metrics = [n for n in STRATUM_METRICS if any(n in own and own[n].value is not None for own in defined.values())]
        if len(estimates) > 1 and defined:
            lines = tuple((name, tuple(own.get(n) for n in metrics)) for name, own in defined.items())
            tables.append(StratumTable(by, tuple(METRICS[n].label for n in metrics), lines))
    return tables


def runs_of(report: CohortReport) -> list[RunScores]:
    """Return this run and the reference runs; empty without reference runs."""
    if report.scores is None or not report.runs:
        return []
    scores = report.scores
    about = {"subjects": len(scores.subjects), "space": scores.space, "mask": scores.mask}
    return [RunScores("this run", dict(scores.estimates), about), *report.runs]


def run_table(runs: Sequence[RunScores]) -> list[dict[str, object]]:
    """One row per run and metric."""
    return [
        {
            "run": run.name,
            "figure": name,
            "value": estimate.value,
            "ci_low": estimate.ci_low,
            "ci_high": estimate.ci_high,
            "n": estimate.n,
            "oracle": is_oracle(name),
            "reason_undefined": estimate.reason_undefined,
        }
        for run in runs
        for name, estimate in run.estimates.items()
    ]
