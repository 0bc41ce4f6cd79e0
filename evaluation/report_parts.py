"""The parts of a report's page: rows, cards, plots, pictures and how numbers are written."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import figures
from .colour_scale import ColourScale
from .intervals import Estimate
from .metric_words import METRICS, is_oracle
from .page import number_text, plot_uris
from .report_inputs import CohortReport, ReportSubject, SubjectImages, TrainingCurve
from .score_cohort import CohortScores, SubjectRow
from .score_subject import SubjectScores
from .slices import Head

HEADLINES = ("auroc", "average_precision", "lesion_sensitivity", "dice_at_healthy_threshold")


@dataclass(frozen=True)
class TableLine:
    subject: ReportSubject
    lesions: int | None
    lesion_ml: float | None
    auroc: Estimate | None
    average_precision: Estimate | None
    best_dice: Estimate | None
    row: SubjectRow | None


def table_line(subject: ReportSubject, row: SubjectRow | None) -> TableLine:
    scores = subject.scores
    if scores is None:
        return TableLine(subject, None, None, None, None, None, row)
    lesions = len(scores.lesions) if scores.truth_known and not scores.is_healthy else None
    volume = scores.lesion_volume_ml if lesions is not None else None
    return TableLine(subject, lesions, volume, scores.auroc, scores.average_precision, scores.best_dice, row)


def score_plots(scores: CohortScores) -> list[figures.Plot]:
    plots = []
    if scores.estimates["auroc"].value is not None:
        plots += [figures.roc_plot(scores), figures.precision_recall_plot(scores), figures.subject_plot(scores)]
    if scores.estimates["froc_score"].value is not None:
        plots += [figures.froc_plot(scores), figures.lesion_plot(scores)]
    return [*plots, figures.distribution_plot(scores)]


def training_plots(curves: Sequence[TrainingCurve]) -> list[figures.Plot]:
    panels: dict[str, list[TrainingCurve]] = {}
    for curve in curves:
        if len(curve.steps):
            panels.setdefault(curve.panel, []).append(curve)
    return [
        figures.line_plot(
            "training-" + "".join(c if c.isalnum() else "-" for c in panel.lower()),
            panel,
            [(c.name, np.asarray(c.steps), np.asarray(c.values)) for c in members],
            y_label=members[0].unit,
            log_scale=members[0].log_scale,
        )
        for panel, members in panels.items()
    ]


def colour_scale_of(report: CohortReport) -> ColourScale | None:
    """One scale for all subjects."""
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
    """What is drawn of a subject."""
    return Head.of(
        images.scan,
        images.map,
        scale,
        brain_mask=images.brain_mask,
        covered=images.covered,
        lesion_mask=images.lesion_mask,
    )


def coverage_warnings(scored: Sequence[SubjectScores]) -> list[str]:
    warnings = []
    for scores in scored:
        if scores.n_lesion_uncovered:
            warnings.append(
                f"{scores.key}: {scores.n_lesion_uncovered} lesion voxels carry no score and count as missed."
            )
        if scores.n_lesion_outside:
            warnings.append(
                f"{scores.key}: {scores.n_lesion_outside} lesion voxels lie outside the evaluation mask and enter "
                "no figure."
            )
    return warnings


@dataclass(frozen=True)
class Headline:
    label: str
    estimate: Estimate
    meaning: str
    beside: str


def headlines(scores: CohortScores | None) -> list[Headline]:
    if scores is None:
        return []
    beside = dict.fromkeys(HEADLINES, "")
    e = scores.estimates
    mean = e["auroc_per_subject_mean"]
    if mean.value is not None:
        beside["auroc"] = f"Mean of {mean.n} subjects: {number_text(mean.value)}"
    precision, prevalence = e["average_precision"].value, e["prevalence"].value
    if precision is not None and prevalence:
        beside["average_precision"] = (
            f"Prevalence {number_text(prevalence)}: {number_text(precision / prevalence)} × guessing"
        )
    false = e["false_clusters_per_subject"]
    if false.value is not None:
        beside["lesion_sensitivity"] = f"At {round(false.value, 2):g} false clusters a patient"
    oracle = e["best_dice_pooled"].value
    if oracle is not None:
        beside["dice_at_healthy_threshold"] = f"Oracle (best threshold for this truth): {number_text(oracle)}"
    return [Headline(METRICS[n].label, e[n], METRICS[n].meaning, beside[n]) for n in HEADLINES]


def metric_rows(scores: CohortScores | None) -> list[tuple[str, str, Estimate, bool, str]]:
    if scores is None:
        return []
    return [
        (words.label, words.meaning, scores.estimates[name], is_oracle(name), words.counts)
        for name, words in METRICS.items()
        if name in scores.estimates
    ]


def typical_patient(subjects: Sequence[ReportSubject]) -> tuple[ReportSubject, str] | None:
    """The one with the median average precision (of an even number the lower one), and what it is, in words.

    The picture on top of the page is not chosen for its beauty.
    """
    ranked = []
    for subject in subjects:
        value = subject.scores.average_precision.value if subject.scores is not None else None
        if value is not None:
            ranked.append((value, subject.key, subject))
    if not ranked:
        return None
    few = {1: "The only patient with lesions", 2: "The patient with the lower average precision"}
    words = few.get(len(ranked), "A typical patient, of median average precision")
    return sorted(ranked, key=lambda entry: entry[:2])[(len(ranked) - 1) // 2][2], words


def cohort_counts(report: CohortReport) -> list[tuple[str, str]]:
    roles: dict[str, int] = {}
    for subject in report.subjects:
        role = subject.role or subject.group
        roles[role] = roles.get(role, 0) + 1
    counts = [(f"{role}s" if number != 1 else role, str(number)) for role, number in roles.items()]
    if report.scores:
        counts.append(("lesions in masks", str(sum(len(s.lesions) for s in report.scores.subjects))))
    counts.append(("failed", str(len({failure.key for failure in report.failures}))))
    return counts


@dataclass(frozen=True)
class EmbeddedPlot:
    name: str
    title: str
    alt: str
    light: str
    dark: str


def embedded(plot: figures.Plot) -> EmbeddedPlot:
    return EmbeddedPlot(plot.name, plot.title, plot.alt, *plot_uris(plot))
