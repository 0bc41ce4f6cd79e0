"""Plots of the cohort report, and plots as part of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..figures import cohort_plots
from ..figures.curves import cohort_curves
from ..figures.plot import Plot
from ..scoring.score_cohort import CohortScores
from .html import plot_uris
from .report_inputs import ReportSubject, TrainingCurve


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
