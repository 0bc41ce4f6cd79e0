import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from voxout.evaluation import figures
from voxout.evaluation.score_cohort import score_cohort

from .test_score_cohort import SETTINGS, make


@pytest.fixture(scope="module")
def scores():
    return score_cohort([make(n, healthy=n < 3)[0] for n in range(6)] + [make(40, lesion_mask=False)[0]], SETTINGS)


def all_plots(scores):
    curve = [("training", np.arange(1000), np.random.default_rng(0).random(1000)), ("held-out", [0], [1.0])]
    return [
        figures.roc_plot(scores),
        figures.precision_recall_plot(scores),
        figures.subject_plot(scores),
        figures.froc_plot(scores),
        figures.lesion_plot(scores),
        figures.distribution_plot(scores),
        figures.line_plot("training-loss", "Loss", curve, y_label="loss", log_scale=True),
    ]


def test_every_plot_is_small_svg_in_both_themes_with_words(scores):
    for plot in all_plots(scores):
        for theme in (figures.LIGHT, figures.DARK):
            svg = plot.svg(theme)
            ElementTree.fromstring(svg)
            assert len(svg) < 60_000, plot.name
            assert b"<text" in svg
        assert plot.alt.endswith(".") and len(plot.alt) > 30


def test_a_plot_drawn_twice_is_the_same(scores):
    assert figures.roc_plot(scores).svg(figures.LIGHT) == figures.roc_plot(scores).svg(figures.LIGHT)


def test_saved_for_papers(scores, tmp_path):
    figures.roc_plot(scores).save(tmp_path / "figures")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"roc.svg", "roc.png"}
    with Image.open(tmp_path / "figures" / "roc.png") as image:
        assert image.size[0] > 800


def test_thinning_keeps_the_ends_and_the_area():
    x = np.linspace(0, 1, 100_000)
    thin_x, thin_y = figures._thinned(x, x**0.1)
    assert len(thin_x) <= figures.MOST_POINTS
    assert (thin_x[0], thin_x[-1]) == (0, 1)
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(1 / 1.1, abs=1e-3)


def test_no_global_figure_is_left_behind(scores):
    import matplotlib.pyplot as plt

    all_plots(scores)[0].svg(figures.DARK)
    assert plt.get_fignums() == []
