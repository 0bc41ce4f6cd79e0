import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from voxout.evaluation.figures import cohort_plots
from voxout.evaluation.figures.curves import cohort_curves
from voxout.evaluation.figures.plot import DARK, LIGHT, MOST_POINTS, thinned
from voxout.evaluation.scoring.score_cohort import score_cohort

from ..scoring.test_score_cohort import SETTINGS, make


@pytest.fixture(scope="module")
def scores():
    return score_cohort([make(n, healthy=n < 3)[0] for n in range(6)] + [make(40, lesion_mask=False)[0]], SETTINGS)


def all_plots(scores):
    curve = [("training", np.arange(1000), np.random.default_rng(0).random(1000)), ("held-out", [0], [1.0])]
    curves = cohort_curves(scores)
    by_site = {("Lyon", "control"): [0.1, 0.2, 0.3], ("Lyon", "patient"): [0.5], ("Oslo <3 T>", "patient"): [0.4, 0.6]}
    return [
        cohort_plots.roc_plot(scores, curves.roc),
        cohort_plots.precision_recall_plot(scores, curves.precision_recall),
        cohort_plots.pro_plot(scores, curves.pro),
        cohort_plots.subject_plot(scores),
        cohort_plots.froc_plot(scores, curves.froc),
        cohort_plots.group_plot("by-site", "By site", by_site, y_label="Score"),
        cohort_plots.lesion_plot(scores),
        cohort_plots.distribution_plot(scores),
        cohort_plots.line_plot("training-loss", "Loss", curve, y_label="loss", log_scale=True),
    ]


def test_plots_are_small_svg_in_both_themes_with_alternative_text(scores):
    for plot in all_plots(scores):
        for theme in (LIGHT, DARK):
            svg = plot.svg(theme)
            ElementTree.fromstring(svg)
            assert len(svg) < 60_000, plot.name
            assert b"<text" in svg
        assert plot.alt.endswith(".") and len(plot.alt) > 30


def test_plots_are_reproducible(scores):
    for first, second in zip(all_plots(scores), all_plots(scores), strict=True):
        assert first.svg(LIGHT) == second.svg(LIGHT), first.name


def test_numbers_in_text_are_not_shortened(scores):
    plot = cohort_plots.roc_plot(scores, cohort_curves(scores).roc)
    assert f"AUROC {scores.estimates['auroc'].value:.3f}".encode() in plot.svg(LIGHT)


def test_only_the_largest_sites_are_shown():
    values = {(f"site {n}", "control"): [0.5] * (n + 1) for n in range(15)}
    plot = cohort_plots.group_plot("many", "Many", values, y_label="Score")
    assert "3 smaller sites are left out" in plot.alt and "site 14" in plot.alt and "site 2," not in plot.alt
    plot.svg(DARK)


def test_plots_are_saved_as_svg_and_png(scores, tmp_path):
    cohort_plots.roc_plot(scores, cohort_curves(scores).roc).save(tmp_path / "figures")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"roc.svg", "roc.png"}
    with Image.open(tmp_path / "figures" / "roc.png") as image:
        assert image.size[0] > 800


def test_thinning_keeps_the_ends_and_the_area():
    x = np.linspace(0, 1, 100_000)
    thin_x, thin_y = thinned(x, x**0.1)
    assert len(thin_x) <= MOST_POINTS
    assert (thin_x[0], thin_x[-1]) == (0, 1)
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(1 / 1.1, abs=1e-3)


def test_no_global_figure_is_left_behind(scores):
    import matplotlib.pyplot as plt

    all_plots(scores)[0].svg(DARK)
    assert plt.get_fignums() == []
