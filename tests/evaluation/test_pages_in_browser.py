"""Tests of the pages in a headless Chromium. Screenshots are stored in ``artefacts/``."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from voxout.evaluation.report.cohort_page import CohortReport, ReportSubject, write_report
from voxout.evaluation.report.report_inputs import Threshold
from voxout.evaluation.report.subject_page import write_subject_page
from voxout.evaluation.scoring.score_cohort import score_cohort

from ..browser import Browser
from .phantom_report import own_scan_report, phantom_report
from .report.test_cohort_page import images_of
from .scoring.test_score_cohort import SETTINGS, make

ARTEFACTS = Path(__file__).parents[2] / "artefacts"
WHERE = "document.getElementById('where').textContent"
CHOSEN = "document.querySelector('#clusters [aria-current]').dataset.place"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("subject ü")
    path = folder / "sub-01.html"
    write_subject_page(path, phantom_report(folder), table=folder / "clusters.csv")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """One window for all pages, since its start takes seconds."""
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def open_page(browser, page):
    browser.open(page)
    browser.wait_for("document.documentElement.dataset.viewer")
    assert browser.run("document.documentElement.dataset.viewer") == "ready"


def assert_no_messages_or_requests(browser, page):
    assert browser.console == []
    assert {url for url in browser.requests if not url.startswith("data:image/")} == {page.as_uri()}


def coloured(picture):
    """Mask of the pixels in the colours of the map (violet to yellow), which have more red than blue."""
    rgb = picture.astype(int)
    return (rgb[..., 0] > 110) & (rgb[..., 0] > rgb[..., 2] + 30) & (rgb[..., 0] >= rgb[..., 1] - 10)


def middle(where):
    """Mean row and column of pixels, as fractions of the picture size."""
    rows, columns = np.nonzero(where)
    return rows.mean() / where.shape[0], columns.mean() / where.shape[1]


def test_the_viewer_shows_the_patients_right_on_the_left(browser, page):
    open_page(browser, page)
    assert "(right)" in browser.run(WHERE) and "score 6.00" in browser.run(WHERE)
    picture = browser.picture(ARTEFACTS / "subject-three-planes.png", "#canvas")
    assert (picture.max(axis=2) > 20).mean() > 0.2, "the canvas is blank"
    browser.picture(ARTEFACTS / "subject-page.png")
    browser.run("(() => { const v = document.getElementById('view'); v.value = '0';"
                " v.dispatchEvent(new Event('change')); })()")  # fmt: skip
    axial = browser.picture(ARTEFACTS / "subject-axial.png", "#canvas")
    # The map of the phantom is high in the right front; the scan is bright in the left front.
    row, column = middle(coloured(axial))
    assert row < 0.5 and column < 0.5
    rgb = axial.astype(int)
    bright = (rgb.min(axis=2) > 215) & (np.ptp(rgb, axis=2) < 12)
    row, column = middle(bright)
    assert row < 0.5 and column > 0.5
    assert_no_messages_or_requests(browser, page)


def test_letters_do_not_overlap_and_the_slider_starts_without_a_remark(browser, page):
    open_page(browser, page)
    letters = browser.run("[...document.querySelectorAll('#letters span')].map((s) => [s.textContent,"
                          " s.getBoundingClientRect().left, s.getBoundingClientRect().right])")  # fmt: skip
    assert [text for text, _, _ in letters] == ["R", "L", "R", "L", "P", "A"]
    ends = [end for _, *both in letters for end in both]
    assert ends == sorted(ends)
    assert browser.run("document.getElementById('threshold-value').textContent") == "2.00"


def test_a_hint_stands_above_tables_wider_than_the_window(page, tmp_path):
    shown = "[...document.querySelectorAll('.hint')].some((hint) => hint.checkVisibility())"
    for width, is_cut in ((420, True), (1300, False)):
        with Browser(tmp_path / str(width), width=width, webgl=False) as browser:
            browser.open(page)
            browser.wait_for("document.documentElement.dataset.viewer")
            browser.wait_for_drawing()
            assert browser.run(shown) is is_cut


def test_click_and_enter_on_a_row_move_the_crosshair(browser, page):
    open_page(browser, page)
    browser.click("#clusters tbody tr:nth-child(2) td")
    assert browser.run(CHOSEN) == "1"
    assert "(left)" in browser.run(WHERE) and "score 3.00" in browser.run(WHERE)
    shown = "[...document.querySelectorAll('.point')].map((f) => f.checkVisibility())"
    assert browser.run(shown) == [False, True]
    browser.press("ArrowUp")
    browser.press("Enter")
    assert browser.run(CHOSEN) == "0" and "(right)" in browser.run(WHERE)
    browser.picture(ARTEFACTS / "subject-clusters.png", "#suspicious")
    assert_no_messages_or_requests(browser, page)


def test_a_row_of_the_lesion_table_moves_the_crosshair(browser, page):
    open_page(browser, page)
    assert browser.run("document.querySelector('#lesions tbody td').textContent") == "yes"
    browser.click("#lesions tbody tr td")
    assert "(left)" in browser.run(WHERE) and "score 3.00" in browser.run(WHERE)
    top = "document.getElementById('viewer').getBoundingClientRect().top"
    assert 0 <= browser.run(top) < browser.run("innerHeight"), "the viewer is scrolled into view"
    assert browser.run("document.querySelectorAll('[aria-current]').length") == 1
    assert browser.run("document.querySelectorAll('.point.chosen').length") == 0
    assert_no_messages_or_requests(browser, page)


def test_arrow_keys_move_the_crosshair(browser, page):
    open_page(browser, page)
    x = "Number(" + WHERE + ".match(/x (-?\\d+)/)[1])"
    before = browser.run(x)
    browser.run("document.getElementById('canvas').focus()")
    browser.press("ArrowRight")
    # Right on the screen is the patient's left.
    assert browser.run(x) == before - 2
    assert_no_messages_or_requests(browser, page)


def test_the_threshold_slider_hides_lower_scores(browser, page):
    open_page(browser, page)
    browser.click("#clusters tbody tr:nth-child(2) td")
    at_two = coloured(browser.picture(ARTEFACTS / "threshold-2.png", "#canvas")).sum()
    left = [at_two]
    # Both thresholds are above this cluster and most of the other, whose peak is in none of these planes.
    for value in (4.6, 5.0):
        browser.run(f"(() => {{ const s = document.getElementById('threshold'); s.value = {value};"
                    " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
        left.append(coloured(browser.picture(ARTEFACTS / f"threshold-{value:g}.png", "#canvas")).sum())
    assert left[0] > 4000 and max(left[1:]) < left[0] / 50
    below = "[...document.querySelectorAll('#clusters tbody tr')].map((r) => r.classList.contains('below'))"
    assert browser.run(below) == [False, True]
    browser.click("#to-healthy")
    assert browser.run(below) == [False, False]
    again = coloured(browser.picture(ARTEFACTS / "threshold-back.png", "#canvas")).sum()
    assert again == pytest.approx(at_two, rel=0.02)
    value = "Number(document.getElementById('threshold').value)"
    browser.run("document.getElementById('threshold').focus()")
    before = browser.run(value)
    browser.press("ArrowRight")
    assert browser.run(value) > before
    assert_no_messages_or_requests(browser, page)


def test_a_map_without_clusters_is_grey_until_the_threshold_is_lowered(browser, tmp_path):
    report = phantom_report(tmp_path)
    images = replace(report.subject.images(), lesion_mask=None)
    # All scores of the map are below the threshold.
    changes = {"subject": replace(report.subject, images=lambda: images), "threshold": Threshold(7.0, "by hand")}
    path = tmp_path / "sub-01.html"
    write_subject_page(path, phantom_report(tmp_path, **changes), table=tmp_path / "clusters.csv")
    open_page(browser, path)
    assert browser.run("document.getElementById('threshold-value').textContent") == "7.00"

    def violet_to_yellow(name):
        rgb = browser.picture(ARTEFACTS / name, "#canvas").astype(int)
        # The crosshair is green.
        return ((rgb.max(axis=2) > 50) & (rgb[..., 0] > rgb[..., 1] + 20)).sum()

    assert violet_to_yellow("quiet.png") == 0
    browser.picture(ARTEFACTS / "quiet-page.png")
    browser.run("(() => { const s = document.getElementById('threshold'); s.value = 3.6;"
                " s.dispatchEvent(new Event('input')); document.getElementById('view').value = '4';"
                " document.getElementById('view').dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert "below the threshold" in browser.run("document.getElementById('threshold-value').textContent")
    assert violet_to_yellow("quiet-lowered.png") > 100
    assert_no_messages_or_requests(browser, path)


@pytest.mark.parametrize("axcodes", ["LPI", "PIR"])
def test_a_marked_voxel_of_a_tilted_scan_lies_under_the_crosshair(browser, tmp_path, axcodes):
    report = own_scan_report(tmp_path, axcodes, others=axcodes == "LPI")
    path = tmp_path / "sub-01.html"
    found = write_subject_page(path, report, table=tmp_path / "clusters.csv")
    open_page(browser, path)
    cells = browser.run(
        "[...document.querySelectorAll('#clusters tbody tr:nth-child(1) td')].map((c) => c.textContent)"
    )
    peak = found.rows[0]
    for space in ("mni", "native"):
        assert ", ".join(f"{peak[f'{axis}_{space}_mm']:.0f}" for axis in "xyz") in cells
    # The score is that of the voxel under the crosshair, as the viewer reads it.
    x, y, z = (f"{peak[f'{axis}_native_mm']:.0f}" for axis in "xyz")
    assert browser.run(WHERE) == f"x {x}, y {y}, z {z} mm of the scan: score 7.00"

    def spot_and_crosshair(name):
        """Row and column of the bright voxel and of the crosshair, in an axial slice without the map."""
        browser.run("(() => { const v = document.getElementById('view'), o = document.getElementById('opacity');"
                    " v.value = '0'; v.dispatchEvent(new Event('change'));"
                    " o.value = 0; o.dispatchEvent(new Event('input')); })()")  # fmt: skip
        rgb = browser.picture(ARTEFACTS / f"{name}-{axcodes}.png", "#canvas").astype(int)
        green = (rgb[..., 1] > rgb[..., 0] + 40) & (rgb[..., 1] > rgb[..., 2] + 20)
        row, column = green.sum(axis=1).argmax(), green.sum(axis=0).argmax()
        near = rgb[row - 12 : row + 13, column - 12 : column + 13].min(axis=2)
        rows, columns = np.nonzero(near > near.max() - 30)
        return (rows.mean() - 12, columns.mean() - 12), near

    offset, near = spot_and_crosshair("tilted")
    assert np.abs(offset).max() < 2.5 and near.max() > 200 and np.median(near) < 90
    if axcodes == "LPI":
        browser.run("(() => { const s = document.getElementById('scan'); s.value = '1';"
                    " s.dispatchEvent(new Event('input')); })()")  # fmt: skip
        _, dark = spot_and_crosshair("tilted-flair")
        assert np.median(dark) > np.median(near) + 60, "the FLAIR is bright where the T1w is dark"
    assert_no_messages_or_requests(browser, path)


def test_the_template_view_is_one_click_away(browser, tmp_path):
    path = tmp_path / "sub-01.html"
    found = write_subject_page(path, own_scan_report(tmp_path), table=tmp_path / "clusters.csv")
    open_page(browser, path)
    browser.picture(ARTEFACTS / "own-scan.png")
    for space in ("template", "own"):
        browser.click("#space")
        browser.wait_for(f"document.documentElement.dataset.space === '{space}'")
        browser.picture(ARTEFACTS / f"space-{space}.png", "#viewer")
        where, row = browser.run(WHERE), found.rows[0]
        name = "mni" if space == "template" else "native"
        assert where.startswith(f"x {row[f'x_{name}_mm']:.0f}") and ("MNI mm" in where) == (space == "template")
        browser.click("#clusters tbody tr:nth-child(2) td")
        row = found.rows[1]
        assert browser.run(WHERE).startswith(f"x {row[f'x_{name}_mm']:.0f}")
        browser.click("#clusters tbody tr:nth-child(1) td")
    assert browser.run("document.getElementById('space').textContent") == "Template view"
    assert_no_messages_or_requests(browser, path)


def test_the_lesion_mask_can_be_hidden(browser, page):
    open_page(browser, page)
    browser.click("#clusters tbody tr:nth-child(2) td")

    def cyan(name):
        rgb = browser.picture(ARTEFACTS / name, "#canvas").astype(int)
        return ((rgb[..., 2] > 150) & (rgb[..., 0] < 90)).sum()

    with_mask = cyan("lesion-shown.png")
    browser.click("#lesion")
    assert with_mask > 300 and cyan("lesion-hidden.png") < with_mask / 20
    assert_no_messages_or_requests(browser, page)


def test_pictures_are_shown_without_webgl(page, tmp_path):
    with Browser(tmp_path, webgl=False) as browser:
        browser.open(page)
        browser.wait_for("document.documentElement.dataset.viewer")
        assert browser.run("document.documentElement.dataset.viewer") == "absent"
        assert "The pictures below show the same" in browser.run("document.getElementById('viewer-note').textContent")
        assert browser.run("document.getElementById('canvas').checkVisibility()") is False
        browser.click("#clusters tbody tr:nth-child(2) td")
        shown = "[...document.querySelectorAll('.point')].map((f) => f.checkVisibility())"
        assert browser.run(shown) == [False, True]
        browser.picture(ARTEFACTS / "subject-without-webgl.png")
        assert [line for line in browser.console if not line.startswith("warning")] == []


def test_pictures_are_shown_after_a_lost_graphics_context(page, tmp_path):
    with Browser(tmp_path) as browser:
        open_page(browser, page)
        browser.run("document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context')"
                    ".loseContext()")  # fmt: skip
        browser.wait_for("document.documentElement.dataset.viewer === 'absent'")
        assert "graphics card" in browser.run("document.getElementById('viewer-note').textContent")


def test_elements_have_accessible_names(browser, page):
    open_page(browser, page)
    nodes = browser.tree()
    assert all(node["name"] for node in nodes if node["role"] in ("image", "img", "button", "slider", "checkbox"))
    names = {node["name"] for node in nodes}
    assert any("patient's right is on the left" in name for name in names)
    assert {"Cluster 1: move there", "Sections", "Dark / light"} <= names
    assert sum(node["role"] == "heading" for node in nodes) >= 6


def test_all_controls_are_reachable_by_tab(browser, page):
    open_page(browser, page)
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        reached.add(browser.run("document.activeElement.id || document.activeElement.dataset.place"))
    assert {"theme", "canvas", "threshold", "to-healthy", "opacity", "lesion", "view", "0", "1"} <= reached


@pytest.fixture(scope="module")
def cohort_page(tmp_path_factory) -> Path:
    subjects = []
    for number in range(8):
        healthy = number < 4
        scores = make(number, healthy=healthy)[0]
        subjects.append(
            ReportSubject(
                scores.key,
                "control" if healthy else "patient",
                role="held-out control" if healthy else "patient",
                site=("Lyon", "Rotterdam, Erasmus MC")[number % 2],
                age=30.0 + number,
                sex="F",
                quality_verdict="warn" if number == 2 else "pass",
                brain_volume_ml=1400.0 - number,
                scores=scores,
                images=lambda n=number, h=healthy: images_of(n, h),
                page=f"subjects/{scores.key}.html",
            )
        )
    scores = score_cohort([s.scores for s in subjects], SETTINGS)
    path = tmp_path_factory.mktemp("cohort") / "index.html"
    return write_report(path, CohortReport("Cohort", datetime(2026, 3, 1), subjects, scores))


KEYS = "[...document.querySelectorAll('#subjects tbody tr')].filter((r) => !r.hidden).map((r) => r.dataset.key)"


def test_the_cohort_table_can_be_sorted_and_filtered(browser, cohort_page):
    browser.open(cohort_page)
    widths = browser.run("(() => { const t = document.getElementById('subjects');"
                         " return [t.scrollWidth, t.parentElement.clientWidth]; })()")  # fmt: skip
    assert widths[0] <= widths[1], "the last column is clipped"
    heads = "[...document.querySelectorAll('#subjects thead th')].map((th) => th.textContent.trim())"
    brain = [text.startswith("Brain, ml") for text in browser.run(heads)].index(True) + 1
    browser.click(f"#subjects th:nth-child({brain}) button")
    assert browser.run(KEYS) == [f"sub-{n:02}" for n in range(7, -1, -1)]
    browser.click(f"#subjects th:nth-child({brain}) button")
    assert browser.run(KEYS) == [f"sub-{n:02}" for n in range(8)]
    for name, value, left in (("role", "patient", 4), ("site", "Lyon", 2), ("verdict", "warn", 0)):
        browser.run(f"(() => {{ const c = document.getElementById('{name}'); c.value = '{value}';"
                    " c.dispatchEvent(new Event('change')); })()")  # fmt: skip
        assert len(browser.run(KEYS)) == left
    assert browser.run("document.getElementById('matches').textContent") == "0 of 8"
    assert_no_messages_or_requests(browser, cohort_page)


def test_the_dark_theme_shows_dark_plots(cohort_page, tmp_path):
    with Browser(tmp_path, dark=True) as browser:
        browser.open(cohort_page)
        assert browser.run("document.querySelector('.plot .on-dark').checkVisibility()") is True
        assert browser.run("document.querySelector('.plot .on-light').checkVisibility()") is False
        assert browser.picture(ARTEFACTS / "cohort-dark.png").mean() < 70
        browser.click("#theme")
        assert browser.picture(ARTEFACTS / "cohort-light.png").mean() > 120
        assert_no_messages_or_requests(browser, cohort_page)
