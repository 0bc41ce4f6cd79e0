"""Elements of the cohort report: table rows, cards, plots and pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..figures import cohort_plots
from ..figures.colour_scale import ColourScale
from ..figures.curves import cohort_curves
from ..figures.plot import Plot
from ..figures.slices import Head
from ..metrics.bootstrap import Estimate
from ..scoring.metric_labels import METRICS, is_oracle
from ..scoring.reference_results import RunScores
from ..scoring.score_cohort import CohortScores, SubjectRow
from .html import number_text, plot_uris
from .report_inputs import CohortReport, ReportSubject, SubjectImages, TrainingCurve

HEADLINES = ("auroc", "average_precision", "lesion_sensitivity", "dice_at_healthy_threshold")


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


def table_line(subject: ReportSubject, row: SubjectRow | None) -> TableLine:
    """Collect the values of a subject for the table."""
    scores = subject.scores
    if scores is None:
        return TableLine(subject, None, None, None, None, None, row)
    lesions = len(scores.lesions) if scores.truth_known and not scores.is_healthy else None
    volume = scores.lesion_volume_ml if lesions is not None else None
    return TableLine(subject, lesions, volume, scores.auroc, scores.average_precision, scores.best_dice, row)


def reading_order(subject: ReportSubject) -> tuple[bool, bool]:
    """Sort key: patients first, then scored controls, then controls used for training."""
    return subject.group != "patient", subject.scores is None


STRATUM_METRICS = (
    "auroc_per_subject_mean",
    "average_precision_per_subject_mean",
    "dice_at_healthy_threshold_per_subject_mean",
    "lesion_sensitivity",
    "false_clusters_per_healthy_subject",
)


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


def score_plots(scores: CohortScores, subjects: Sequence[ReportSubject]) -> list[Plot]:
    """Plot the curves that the scores define, the distribution of scores, and differences between sites."""
    curves, plots = cohort_curves(scores), []
    if curves.roc is not None:
        plots.append(cohort_plots.roc_plot(scores, curves.roc))
    if curves.precision_recall is not None:
        plots.append(cohort_plots.precision_recall_plot(scores, curves.precision_recall))
    if curves.froc is not None:
        plots.append(cohort_plots.froc_plot(scores, curves.froc))
    if curves.pro is not None:
        plots.append(cohort_plots.pro_plot(scores, curves.pro))
    if curves.roc is not None:
        plots.append(cohort_plots.subject_plot(scores))
    if curves.froc is not None:
        plots.append(cohort_plots.lesion_plot(scores))
    return [*plots, cohort_plots.distribution_plot(scores), *_group_plots(subjects)]


def _group_plots(subjects: Sequence[ReportSubject]) -> list[Plot]:
    """Plot differences between sites and groups; scores of healthy tissue should not differ."""
    healthy, found = {}, {}
    for subject in subjects:
        scores, place = subject.scores, (subject.site or "site not given", subject.group)
        if scores is None:
            continue
        if scores.truth_known:
            healthy.setdefault(place, []).append(scores.histogram.healthy_quantile(0.99))
        if scores.average_precision.value is not None:
            found.setdefault(place, []).append(scores.average_precision.value)
    plots = []
    if healthy:
        label = "99th percentile of scores outside lesions"
        plots.append(
            cohort_plots.group_plot("scores-by-site", "Healthy tissue by site and group", healthy, y_label=label)
        )
    if len({site for site, _ in found}) > 1:
        label = "Average precision"
        plots.append(cohort_plots.group_plot("precision-by-site", "Average precision by site", found, y_label=label))
    return plots


@dataclass(frozen=True)
class QualityLine:
    """Summary of the preprocessing quality at one site."""

    site: str
    subjects: int
    verdicts: Mapping[str, int]
    brain_ml: float | None
    smallest_ml: float | None
    largest_ml: float | None


def quality_lines(subjects: Sequence[ReportSubject]) -> list[QualityLine]:
    """Summarise the quality of each site, in alphabetical order."""
    lines = []
    for site in sorted({subject.site or "" for subject in subjects}):
        here = [s for s in subjects if (s.site or "") == site]
        counts = Counter(subject.quality_verdict or "not prepared" for subject in here)
        verdicts = {verdict: counts[verdict] for verdict in ("pass", "warn", "fail", "not prepared")}
        volumes = [s.brain_volume_ml for s in here if s.brain_volume_ml is not None]
        summary = (float(np.mean(volumes)), min(volumes), max(volumes)) if volumes else (None, None, None)
        lines.append(QualityLine(site or "site not given", len(here), verdicts, *summary))
    return lines


def runs_of(report: CohortReport) -> list[RunScores]:
    """Return this run and the reference runs; empty without reference runs."""
    if report.scores is None or not report.runs:
        return []
    scores = report.scores
    about = {"subjects": len(scores.subjects), "space": scores.space, "mask": scores.mask}
    return [RunScores("this run", dict(scores.estimates), about), *report.runs]


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
            "page": line.subject.page,
        }
        for line in lines
    ]


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


def training_plots(curves: Sequence[TrainingCurve]) -> list[Plot]:
    """Plot the training curves, one plot per panel; empty curves are left out."""
    panels: dict[str, list[TrainingCurve]] = {}
    for curve in curves:
        if len(curve.steps):
            panels.setdefault(curve.panel, []).append(curve)
    return [
        cohort_plots.line_plot(
            "training-" + "".join(c if c.isalnum() else "-" for c in panel.lower()),
            panel,
            [(c.name, np.asarray(c.steps), np.asarray(c.values)) for c in members],
            y_label=members[0].unit,
            log_scale=members[0].log_scale,
        )
        for panel, members in panels.items()
    ]


def threshold_of(report: CohortReport) -> float | None:
    """Lower end of the colour scale; None without a threshold."""
    if report.threshold is None and report.scores is not None:
        return report.scores.threshold
    return report.threshold


def colour_scale_of(report: CohortReport) -> ColourScale | None:
    """Return the common colour scale of all subjects; None without maps."""
    threshold = threshold_of(report)
    if threshold is not None:
        return ColourScale.at(threshold)
    scored = [s.scores for s in report.subjects if s.scores is not None]
    if scored:
        return ColourScale.of_cohort(scored)
    samples = []
    for subject in report.subjects:
        if subject.images is not None:
            images = subject.images()
            inside = images.brain_mask.voxels if images.brain_mask is not None else np.isfinite(images.map.voxels)
            samples.append(images.map.voxels[inside.astype(bool)][::7])
    return ColourScale.of_maps(samples) if samples else None


def head_of(images: SubjectImages, scale: ColourScale) -> Head:
    """Volumes of a subject, prepared for drawing."""
    return Head.from_volumes(
        images.scan,
        images.map,
        scale,
        brain_mask=images.brain_mask,
        covered=images.covered,
        lesion_mask=images.lesion_mask,
    )


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


def typical_patient(subjects: Sequence[ReportSubject]) -> tuple[ReportSubject, str] | None:
    """Return the patient with the median average precision (the lower one of an even number), and a caption.

    This avoids a biased choice of the picture at the top of the page.
    """
    ranked = []
    for subject in subjects:
        value = subject.scores.average_precision.value if subject.scores is not None else None
        if value is not None:
            ranked.append((value, subject.key, subject))
    if not ranked:
        return None
    few = {1: "The only patient with lesions", 2: "The patient with the lower average precision"}
    caption = few.get(len(ranked), "The patient with median average precision")
    return sorted(ranked, key=lambda entry: entry[:2])[(len(ranked) - 1) // 2][2], caption


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


@dataclass(frozen=True)
class EmbeddedPlot:
    """Plot as data URIs for light and dark backgrounds."""

    name: str
    title: str
    alt: str
    light: str
    dark: str


def embedded(plot: Plot) -> EmbeddedPlot:
    """Draw a plot for light and dark backgrounds."""
    return EmbeddedPlot(plot.name, plot.title, plot.alt, *plot_uris(plot))
