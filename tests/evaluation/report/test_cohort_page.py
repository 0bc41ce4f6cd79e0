import base64
import csv
import hashlib
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from voxout.data_manifests.errors import Failure, SubjectError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics.bootstrap import Estimate
from voxout.evaluation.report import cohort_page
from voxout.evaluation.report.cohort_page import (
    CohortReport,
    ReportSubject,
    StageTime,
    SubjectImages,
    TrainingCurve,
    write_report,
)
from voxout.evaluation.report.headlines import threshold_notes
from voxout.evaluation.report.html import duration_text, number_text
from voxout.evaluation.report.qc_table import quality_lines
from voxout.evaluation.report.report_inputs import Findings, QualityNumber
from voxout.evaluation.scoring.metric_labels import METRICS
from voxout.evaluation.scoring.reference_results import RunScores
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map

from ..scoring.test_score_cohort import GRID, SETTINGS, make

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """HTML parser that collects links, images and ids, and asserts that all elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], text
        self.ids = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        assert "style" not in attrs and not any(name.startswith("on") for name in attrs), "forbidden by the policy"
        self.links += [attrs[name] for name in ("src", "href", "action", "srcset") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def images_of(number, healthy):
    _, _, lesion = make(number, healthy=healthy)
    random = np.random.default_rng(number)
    map = Volume(random.standard_normal(GRID.size_vox).astype(np.float32), GRID)
    inside = map.with_voxels(np.ones(GRID.size_vox, bool))
    truth = None if healthy else map.with_voxels(lesion.reshape(GRID.size_vox))
    return SubjectImages(map.with_voxels(np.abs(map.voxels)), map, inside, inside, truth)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report ü")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "quality.png")
    subjects = []
    for number in range(6):
        healthy = number < 3
        subjects.append(
            ReportSubject(
                key=f"sub-{number:02}",
                group="control" if healthy else "patient",
                role="held-out control" if healthy else "patient",
                site="<b>Lyon</b>",
                age=40.5 + number,
                quality_verdict="pass",
                quality_picture=folder / ("gone.png" if number == 5 else "quality.png"),
                brain_volume_ml=1400.0,
                quality=(QualityNumber("noise", "Noise", 0.02 + 0.001 * number),),
                scores=make(number, healthy=healthy)[0],
                images=lambda n=number, h=healthy: images_of(n, h),
                page="subjects/sub-03.html" if number == 3 else None,
            )
        )
    subjects.append(ReportSubject("sub-90", "control", role="training control"))

    def broken():
        raise SubjectError("sub-91: map.nii.gz: no such file.")

    subjects.append(ReportSubject("sub-91", "patient", role="patient", images=broken))
    scores = score_cohort([s.scores for s in subjects if s.scores], SETTINGS)
    report = CohortReport(
        title="Epilepsy & controls",
        created=datetime(2026, 3, 1, 9, 5),
        subjects=subjects,
        scores=scores,
        runs=[RunScores("with <FLAIR>", {"auroc": Estimate(0.875, 7), "froc_score": Estimate.undefined("none")}, {})],
        summary={"template": "2 mm"},
        training=[
            TrainingCurve("Reconstruction error", "training", [0, 1, 2], [3.0, 2.0, 1.0], "MSE", True),
            TrainingCurve("Reconstruction error", "held-out", [2], [1.5], "MSE", True),
            TrainingCurve("Guidance", "training", [], []),
        ],
        stages=[StageTime("prepare", 75.0, 512.0, 6, 1), StageTime("fit", 3.0)],
        failures=[Failure("sub-99", "prepare", 'T1w "ends" before its last voxel. Copy it again.')],
        warnings=["The kernel is nearly flat."],
        settings_text="models:\n  nu: 0.1 # <script>alert(1)</script>\n",
        versions={"voxout": "0.1.0", "python": "3.11"},
    )
    path = write_report(folder / "out" / "index.html", report)
    return report, path, Page(path.read_text(encoding="utf-8"))


def test_the_page_loads_no_external_files(written):
    _, _, page = written
    # Only relative links to output files are allowed.
    outside = {link for link in page.links if not link.startswith(("data:image/", "#"))}
    tables = {f"tables/{name}.csv" for name in ("subjects", "runs", "quality")}
    assert outside == tables | {"subjects/sub-03.html", "subjects/sub-03.html#quality"}
    assert "url(" not in page.text and "@import" not in page.text
    assert "default-src 'none'" in page.text


def test_the_policy_names_the_style_and_the_script(written):
    _, _, page = written
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.text


def test_pictures_have_alternative_texts_and_maps_have_pictures(written):
    report, _, page = written
    assert all(image.get("alt") for image in page.images)
    for subject in report.subjects:
        pictures = [image for image in page.images if re.match(rf"{subject.key}: \d axial slices", image["alt"])]
        # The patient with the median score is also shown at the top of the page.
        assert len(pictures) in ((1, 2) if subject.scores else (0,)), subject.key
    assert sum("axial slices" in image["alt"] for image in page.images) == 7


def test_links_have_targets_and_ids_are_unique(written):
    _, _, page = written
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_all_texts_are_shown_and_escaped(written):
    report, _, page = written
    for expected in (
        "Research use only",
        "Epilepsy &amp; controls",
        "2026-03-01 09:05",
        "sub-90",
        "sub-99",
        "Copy it again.",
        "The kernel is nearly flat.",
        "No picture of sub-91: sub-91: map.nii.gz: no such file.",
        "sub-05: the quality-control picture is missing or damaged.",
        "&lt;script&gt;alert(1)",
        "&lt;b&gt;Lyon",
        "1 min 15 s",
        "radiological convention",
        "with &lt;FLAIR&gt;",
        "0.875",
    ):
        assert expected in page.text, expected
    for name, metric in METRICS.items():
        assert metric.label in page.text, name
    assert page.text.count('class="badge oracle"') >= 3
    assert set(METRICS) == set(report.scores.estimates)


def test_patients_come_first_and_unscored_controls_last(written):
    _, _, page = written
    body = re.search(r'id="subjects">.*?<tbody>(.*?)</tbody>', page.text, flags=re.DOTALL)[1]
    keys = re.findall(r'data-key="([^"]*)"', body)
    assert keys == ["sub-03", "sub-04", "sub-05", "sub-91", "sub-00", "sub-01", "sub-02", "sub-90"]


def test_strata_with_several_groups_are_shown(written):
    report, _, page = written
    section = re.search(r'<section id="strata">(.*?)</section>', page.text, flags=re.DOTALL)[1]
    names = re.findall(r'<tr><th scope="row">(.*?)</th>', section)
    assert "By lesion volume" in section and "By site" not in section, "a single site is the complete cohort"
    volumes = [s for s in report.scores.strata if s.by == "lesion volume"]
    defined = [s.name for s in volumes if s.measures["lesion_sensitivity"].n]
    assert 0 < len(defined) < len(volumes)
    assert names[-len(defined) :] == defined, "bands without lesions are left out"
    table = section.split("By lesion volume")[1]
    assert "sensitivity" in table and "AUROC" not in table and "–" not in table


def test_nothing_is_loaded_lazily_since_it_would_be_missing_in_print(written):
    _, _, page = written
    assert all("loading" not in image for image in page.images)


def test_figures_are_written(written):
    _, path, _ = written
    names = {p.name for p in (path.parent / "figures").iterdir()}
    assert {"roc.svg", "roc.png", "precision-recall.png", "training-reconstruction-error.svg"} <= names
    assert not any(name.startswith(".") for name in names)
    assert [p.name for p in path.parent.glob(".*")] == []


def test_tables_are_written(written):
    report, path, _ = written
    with (path.parent / "tables" / "subjects.csv").open(newline="") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert set(rows) == {s.key for s in report.subjects}
    assert float(rows["sub-04"]["auroc"]) == pytest.approx(report.subjects[4].scores.auroc.value, rel=1e-6)
    assert rows["sub-90"]["auroc"] == "" and rows["sub-03"]["page"] == "subjects/sub-03.html"
    with (path.parent / "tables" / "runs.csv").open(newline="") as file:
        figures = {(row["run"], row["figure"]): row for row in csv.DictReader(file)}
    assert figures["with <FLAIR>", "auroc"]["value"] == "0.875"
    assert figures["this run", "best_dice_pooled"]["oracle"] == "yes"
    assert figures["with <FLAIR>", "froc_score"]["reason_undefined"] == "none"


def test_quality_is_counted_per_site():
    subjects = [
        ReportSubject("a", "control", site="Lyon", quality_verdict="pass", brain_volume_ml=1300.0),
        ReportSubject("b", "control", site="Lyon", quality_verdict="warn", brain_volume_ml=1500.0),
        ReportSubject("c", "patient", site="Lyon"),
        ReportSubject("d", "patient", quality_verdict="fail", brain_volume_ml=900.0),
    ]
    nowhere, lyon = quality_lines(subjects)
    assert (lyon.site, lyon.subjects, lyon.brain_ml, lyon.smallest_ml, lyon.largest_ml) == ("Lyon", 3, 1400, 1300, 1500)
    assert lyon.verdicts == {"pass": 1, "warn": 1, "fail": 0, "not prepared": 1}
    assert (nowhere.site, nowhere.verdicts["fail"]) == ("site not given", 1)


def test_one_subject_in_memory_at_a_time(written, tmp_path, monkeypatch):
    report, _, _ = written
    seen = []
    subjects = [
        ReportSubject(s.key, s.group, images=lambda s=s: seen.append(s.key) or s.images()) for s in report.subjects[:3]
    ]
    bare = CohortReport("t", report.created, subjects, scores=None)
    draw = cohort_page.subject_mosaic
    monkeypatch.setattr(cohort_page, "subject_mosaic", lambda *head, **how: seen.append("drawn") or draw(*head, **how))
    page = Page(write_report(tmp_path / "index.html", bare).read_text())
    # Without scores every map is read once for the common scale, then once more to be drawn.
    assert seen == ["sub-00", "sub-01", "sub-02", "sub-00", "drawn", "sub-01", "drawn", "sub-02", "drawn"]
    assert "No metrics: no map could be scored" in page.text
    assert sum("axial slices" in image["alt"] for image in page.images) == 3


def test_a_report_with_only_failures(tmp_path):
    report = CohortReport("t", datetime(2026, 1, 1), [], failures=[Failure("sub-1", "check", "Broken.")])
    assert "Broken." in Page(write_report(tmp_path / "index.html", report).read_text()).text


def test_a_cohort_of_healthy_scans_has_a_page_without_curves(tmp_path):
    scores = [make(n, healthy=True)[0] for n in range(3)]
    subjects = [ReportSubject(s.key, "control", scores=s) for s in scores]
    report = CohortReport("t", datetime(2026, 1, 1), subjects, score_cohort(scores, SETTINGS))
    page = Page(write_report(tmp_path / "index.html", report).read_text())
    assert "not defined" in page.text and "plot-roc" not in page.ids and "plot-score-distributions" in page.ids


def without_truth(share):
    """Report of one map without a lesion mask, flagged in this share of both hemispheres."""
    images = images_of(4, False)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 1 - np.array(GRID.size_vox)
    grid = Grid(GRID.size_vox, affine)
    voxels = np.zeros(GRID.size_vox, np.float32)
    voxels[:, :, : round(share * GRID.size_vox[2])] = 9.0
    map = Volume(voxels, grid)
    inside = map.with_voxels(np.ones(GRID.size_vox, bool))
    scored = score_map("sub-1", map, inside, None, None, SETTINGS)
    shown = SubjectImages(map.with_voxels(np.abs(images.scan.voxels)), map, inside, inside)
    subject = ReportSubject("sub-1", "patient", scores=scored, images=lambda: shown)
    model = [StageTime("fit", 26.0, of_model=True), StageTime("map", 10.0, done=1)]
    return CohortReport("t", datetime(2026, 1, 1), [subject], score_cohort([scored], SETTINGS), 3.0, stages=model)


def test_maps_come_first_without_lesion_masks(tmp_path, written):
    page = Page(write_report(tmp_path / "index.html", without_truth(0.05)).read_text())
    assert page.ids.index("cohort") < page.ids.index("maps") and not {"metrics", "curves"} & set(page.ids)
    for absent in ("AUROC", "Dice", "not defined", "not compared"):
        assert absent not in page.text, absent
    assert "lesions in masks" not in page.text and "AP</th>" not in page.text and ">Flagged, ml</th>" not in page.text
    with_truth = written[2].ids
    assert with_truth.index("maps") > with_truth.index("metrics")


def columns_of(text, table):
    pattern = rf'id="{table}">\s*<thead>(.*?)</thead>\s*<tbody>(.*?)</tbody>'
    head, body = re.search(pattern, text, re.DOTALL).groups()
    names = [re.sub(r"<[^>]+>", "", name).strip() for name in re.findall(r"<th\b.*?</th>", head, re.DOTALL)]
    rows = [re.findall(r"<(?:td|th)\b[^>]*>(.*?)</(?:td|th)>", row, re.DOTALL) for row in body.split("</tr>")[:-1]]
    assert all(len(row) == len(names) for row in rows)
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def test_the_table_of_applied_patients_has_what_was_found_and_no_column_of_dashes(tmp_path):
    report = without_truth(0.05)
    (subject,) = report.subjects
    found = replace(subject, age=44.0, quality_verdict="warn", findings=Findings(2, 3, 1.25))
    nothing = ReportSubject("sub-2", "patient")
    text = write_report(tmp_path / "index.html", replace(report, subjects=[found, nothing])).read_text()
    columns = columns_of(text, "subjects")
    assert list(columns) == [
        "Subject", "Role", "Age, sex", "Quality", "Clusters", "Their volume, ml", "Highest score",
    ]  # fmt: skip
    assert columns["Their volume, ml"] == ("1.25", "–") and columns["Highest score"] == ("9", "–")
    assert columns["Clusters"] == ("2", "–")
    with (tmp_path / "tables" / "subjects.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["findings"], row["clusters_ml"], row["highest_score"]) == ("3", "1.25", "9")
    assert all(set(column) != {"–"} for column in columns.values())


def test_the_table_of_a_run_has_what_was_found_beside_the_metrics(written, tmp_path):
    report, _, _ = written
    found = [replace(subject, findings=Findings(2, 3, 1.25)) for subject in report.subjects]
    text = write_report(tmp_path / "index.html", replace(report, subjects=found)).read_text()
    columns = columns_of(text, "subjects")
    assert {"Lesions found", "AUROC", "Clusters", "Their volume, ml", "Highest score"} <= columns.keys()
    assert set(columns["Clusters"]) == {"2"} and set(columns["Their volume, ml"]) == {"1.25"}


def test_stages_of_the_model_are_named_as_such(tmp_path):
    text = write_report(tmp_path / "index.html", without_truth(0.05)).read_text()
    assert re.search(r"fit</th><td>run of the model</td>.*map</th><td>this run</td>", text)


@pytest.mark.parametrize(("share", "warned"), [(0.05, False), (0.3, True)])
def test_a_map_above_the_threshold_everywhere_is_warned_about(tmp_path, share, warned):
    text = write_report(tmp_path / "index.html", without_truth(share)).read_text()
    assert ("in both hemispheres" in text) == warned


def test_threshold_notes_explain_clusters_of_patients_and_small_groups(written):
    report, _, _ = written
    notes = threshold_notes(report)
    assert "a scan may have a flagged volume and no cluster" in notes[0]
    false = report.scores.estimates["false_clusters_per_subject"].value
    assert (len(notes) == 2) == (false > report.scores.settings.false_clusters)


@pytest.mark.slow
def test_the_page_of_two_hundred_subjects_stays_below_three_megabytes(tmp_path):
    images = images_of(4, False)
    scored = score_map("sub-004", images.map, images.brain_mask, images.lesion_mask, None, SETTINGS)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 600, 3)).astype(np.uint8))
    noise.save(tmp_path / "q.png")
    subjects = [
        ReportSubject(f"sub-{n:03}", "patient", quality_picture=tmp_path / "q.png", images=lambda: images)
        for n in range(200)
    ]
    subjects[4] = ReportSubject("sub-004", "patient", scores=scored, images=lambda: images)
    report = CohortReport("t", datetime(2026, 1, 1), subjects, score_cohort([scored], SETTINGS))
    assert write_report(tmp_path / "index.html", report).stat().st_size < 3e6


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3, "3"), (0.5, "0.500"), (0.0034, "0.0034"), (12.34, "12.3"), (1.234, "1.23"), (15234.5, "15 234"),
     (0.0, "0"), (-0.25, "-0.250"), (1400.0, "1 400")],
)  # fmt: skip
def test_number_text(value, text):
    assert number_text(value) == text


def test_duration_text():
    assert (duration_text(3.21), duration_text(75), duration_text(7500)) == ("3.2 s", "1 min 15 s", "2 h 05 min")
