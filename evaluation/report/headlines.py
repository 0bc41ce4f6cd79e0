"""Metrics of the cohort report: the main ones with their context, all of them, and notes about the threshold."""

from dataclasses import dataclass

from ..metrics.bootstrap import Estimate
from ..scoring.metric_labels import METRICS, is_oracle
from ..scoring.score_cohort import CohortScores
from .html import number_text
from .report_inputs import CohortReport

HEADLINES = ("auroc", "average_precision", "lesion_sensitivity", "dice_at_healthy_threshold")


@dataclass(frozen=True)
class Headline:
    """Metric at the top of the page, with its meaning and what to compare it with."""

    label: str
    estimate: Estimate
    meaning: str
    context: str


def headlines(scores: CohortScores | None) -> list[Headline]:
    """Return the metrics of `HEADLINES`; none without scores."""
    if scores is None:
        return []
    context = dict.fromkeys(HEADLINES, "")
    e = scores.estimates
    mean = e["auroc_per_subject_mean"]
    if mean.value is not None:
        context["auroc"] = f"Mean of {mean.n} subjects: {number_text(mean.value)}"
    precision, prevalence = e["average_precision"].value, e["prevalence"].value
    if precision is not None and prevalence:
        context["average_precision"] = (
            f"Prevalence {number_text(prevalence)}: {number_text(precision / prevalence)} × chance level"
        )
    false = e["false_clusters_per_subject"]
    if false.value is not None:
        context["lesion_sensitivity"] = f"At {round(false.value, 2):g} false clusters per patient"
    oracle = e["best_dice_pooled"].value
    if oracle is not None:
        context["dice_at_healthy_threshold"] = f"Oracle (threshold chosen on the truth): {number_text(oracle)}"
    return [Headline(METRICS[n].label, e[n], METRICS[n].meaning, context[n]) for n in HEADLINES]


def metric_rows(scores: CohortScores | None) -> list[tuple[str, str, Estimate, bool, str]]:
    """Return label, meaning, estimate, whether it is an oracle, and what its `n` counts, for each metric."""
    if scores is None:
        return []
    return [
        (metric.label, metric.meaning, scores.estimates[name], is_oracle(name), metric.counts)
        for name, metric in METRICS.items()
        if name in scores.estimates
    ]


def cohort_counts(report: CohortReport) -> list[tuple[str, str]]:
    """Count subjects by role, lesions and failures; return labels and numbers as text."""
    roles: dict[str, int] = {}
    for subject in report.subjects:
        role = subject.role or subject.group
        roles[role] = roles.get(role, 0) + 1
    counts = [(f"{role}s" if number != 1 else role, str(number)) for role, number in roles.items()]
    if report.scores and any(s.truth_known for s in report.scores.subjects):
        counts.append(("lesions in masks", str(sum(len(s.lesions) for s in report.scores.subjects))))
    counts.append(("failed", str(len({failure.key for failure in report.failures}))))
    return counts


def threshold_notes(report: CohortReport) -> list[str]:
    """Explain what is counted at the threshold, for the tables of clusters and flagged volume."""
    scores = report.scores
    if scores is None or scores.threshold is None:
        return []
    settings = scores.settings
    smallest, allowed = number_text(settings.smallest_cluster_mm3), settings.false_clusters
    notes = []
    if settings.smallest_cluster_mm3 > 0:
        notes.append(
            f"The flagged volume counts every voxel at or above the threshold, also in groups smaller than {smallest} "
            "mm³, which are no clusters: a scan may have a flagged volume and no cluster."
        )
    false = scores.estimates["false_clusters_per_subject"].value
    if false is not None and false > allowed:
        notes.append(
            f"Patients have {number_text(false)} false clusters on average, more than the {number_text(allowed)} that "
            "the threshold allows: the limit is set on healthy brains. In patients, a cluster beside the lesion mask "
            "counts as false even where the lesion displaces or changes the tissue, or the mask is incomplete."
        )
    return notes
