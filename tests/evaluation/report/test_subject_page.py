import base64
import csv
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.stats import norm
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.figures import mosaic
from voxout.evaluation.figures.colour_scale import ColourScale
from voxout.evaluation.metrics.fdr import Discovery
from voxout.evaluation.report.findings import describe
from voxout.evaluation.report.map_pictures import colour_scale_of, head_of, threshold_of
from voxout.evaluation.report.report_inputs import (
    CohortReport,
    OwnScan,
    ReportSubject,
    ScoredMap,
    SubjectImages,
    Threshold,
)
from voxout.evaluation.report.subject_page import write_subject_page
from voxout.evaluation.report.viewer.volumes import niivue_source
from voxout.evaluation.scoring.score_cohort import score_cohort, subject_row
from voxout.evaluation.scoring.score_subject import score_map
from voxout.preprocessing.registration.template import load_template

from ..phantom_report import LEFT_BACK, RIGHT_FRONT, SETTINGS, THRESHOLD, phantom_report
from ..scoring.test_score_cohort import SETTINGS as COHORT_SETTINGS
from ..scoring.test_score_cohort import make
from .test_cohort_page import Page


def written(folder, **changes):
    report = phantom_report(folder, **changes)
    page, table = folder / "sub-01.html", folder / "sub-01_clusters.csv"
    write_subject_page(page, report, table=table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return page, Page(page.read_text(encoding="utf-8")), rows


def rows_of(page):
    return [re.sub(r"<[^>]+>", "|", row) for row in rows_of_text(page.text).split("</tr>")[:-1]]


def test_the_page_loads_no_external_files_and_runs_no_other_scripts(tmp_path):
    path, page, _ = written(tmp_path)
    assert path.stat().st_size < 4e6
    assert all(link.startswith(("data:image/", "#", "../index.html")) for link in page.links)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, flags=re.DOTALL)
    for text in (script, niivue_source()):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "<script>alert" not in page.text and "&lt;script&gt;alert(1)" in page.text


def test_clusters_are_listed_by_peak_with_location_and_overlap(tmp_path):
    _, page, rows = written(tmp_path)
    assert [row["rank"] for row in rows] == ["1", "2"]
    first, second = rows
    assert [float(first[f"{a}_mni_mm"]) for a in "xyz"] == pytest.approx(RIGHT_FRONT, abs=3)
    assert [float(second[f"{a}_mni_mm"]) for a in "xyz"] == pytest.approx(LEFT_BACK, abs=11)
    assert (first["side"], second["side"]) == ("right", "left")
    assert (first["in_lesion_mask"], second["in_lesion_mask"]) == ("0", "1")
    assert float(first["peak_score"]) == 6.0 and first["p_value"] == ""
    assert (first["lobe"], second["lobe"]) == ("frontal lobe", "temporal lobe")
    assert first["regions"].startswith("inferior frontal gyrus, triangular part 32 %; ")
    assert first["regions"] in page.text
    listed = rows_of(page)
    assert len(listed) == 2 and "right" in listed[0] and "100 %" in listed[1]
    assert "p-value" not in page.text
    for expected in (
        "radiological convention",
        "Research use only",
        "The overlap of its brain is &lt;low&gt;.",
        "No quality-control picture",
        "Redistribution and use",
        "set on healthy scans alone",
    ):
        assert expected in page.text, expected


def test_the_page_shows_the_id_but_no_age_or_site(tmp_path):
    _, page, _ = written(tmp_path)
    text = html.unescape(re.sub(r"<(script|style)\b.*?</\1>", "", page.text, flags=re.DOTALL))
    assert "sub-01" in text and "44.4" not in text and "Lyon" not in text


def test_the_page_shows_the_false_discovery_rate_threshold(tmp_path):
    def page_text(discovery):
        text = re.sub(r"<(script|style)\b.*?</\1>", "", written(tmp_path, discovery=discovery)[1].text, flags=re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>", "", text))

    survives = page_text(Discovery(0.05, 4.4123))
    assert "the voxels at or above 4.41 survive at 5 %." in survives
    nothing = page_text(Discovery(0.01, None))
    assert "at 1 % no voxel survives." in nothing
    assert "alse discovery" not in page_text(None)


def test_clusters_have_p_values_with_healthy_brains(tmp_path):
    plain = phantom_report(tmp_path).threshold
    largest = float(written(tmp_path)[2][0]["volume_mm3"])
    known = Threshold(plain.value, plain.origin, (largest, 2 * largest, 0.0))
    _, page, rows = written(tmp_path, threshold=known)
    assert float(rows[0]["p_value"]) == pytest.approx(0.75)
    assert "p-value" in page.text and "0.75" in rows_of(page)[0]
    _, page, _ = written(tmp_path, threshold=Threshold(plain.value, plain.origin, (0.0, 1.0, 2.0)))
    assert "1/4 " in rows_of(page)[0] and "1/4 is the smallest that 3 controls allow" in page.text


def test_pictures_and_table_name_the_same_position(tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(mosaic, "_lettered", lambda tiles, planes, found: captions.append(found) or tiles[0])
    of = phantom_report(tmp_path)
    mosaic.point_picture(head_of(of.subject.images(), of.scale), np.array([-23.2, 40.9, -0.3]))
    assert captions == [["axial, z 0 mm", "coronal, y 41 mm", "sagittal, x -23 mm"]]


def test_a_cluster_with_two_peaks_is_two_findings_in_page_table_and_labels(tmp_path):
    report = phantom_report(tmp_path)
    scored = report.scored
    joined = scored.map.voxels.copy()
    # A bridge above the threshold joins both clusters of the phantom.
    index = np.round(np.linalg.inv(scored.map.affine) @ np.array([[*RIGHT_FRONT, 1], [*LEFT_BACK, 1]]).T)[:3]
    for place in np.linspace(index[:, 0], index[:, 1], 200).round().astype(int):
        box = tuple(slice(p - 1, p + 2) for p in place)
        joined[box] = np.maximum(joined[box], THRESHOLD + 0.1)
    scored = replace(scored, map=scored.map.with_voxels(joined))
    page, table = tmp_path / "sub-01.html", tmp_path / "clusters.csv"
    found = write_subject_page(page, replace(report, scored=scored), table=table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part_of"] for row in rows] == ["1+2", "1+2"]
    first, second = rows_of(Page(page.read_text(encoding="utf-8")))
    assert "1 + 2" in first and "part of 1" in second and "1 + 2" not in second
    assert sum(float(row["volume_mm3"]) for row in rows) == pytest.approx(float(rows[0]["cluster_mm3"]), rel=1e-6)
    for row in rows:
        own = (found.labels.voxels == int(row["rank"])).sum() * 8
        assert float(row["volume_mm3"]) == pytest.approx(own)
    text = page.read_text(encoding="utf-8")
    assert "2 findings in 1 cluster above 2.00" in text and "1 + 2 <" in rows_of_text(text)


def rows_of_text(text):
    return re.search(r'id="clusters">.*?<tbody>(.*?)</tbody>', text, flags=re.DOTALL)[1]


def test_peaks_are_listed_in_template_space(tmp_path):
    plain = phantom_report(tmp_path).scored
    moved = ScoredMap(plain.map, plain.inside, lambda points: points + np.array([1.0, -2.0, 3.0]), plain.lesion_mask)
    _, _, before = written(tmp_path)
    _, _, rows = written(tmp_path, scored=moved)
    for axis, shift in zip("xyz", (1, -2, 3), strict=True):
        assert float(rows[0][f"{axis}_mni_mm"]) == pytest.approx(float(before[0][f"{axis}_mni_mm"]) + shift)


def test_a_map_without_clusters(tmp_path):
    _, page, rows = written(tmp_path, threshold=Threshold(99.0, "set by hand"))
    assert rows == [] and "No cluster of at least 30 mm³ lies at or above 99" in page.text
    assert 'id="clusters"' not in page.text


def test_the_page_starts_with_the_findings_as_the_terminal_tells_them(tmp_path):
    _, page, rows = written(tmp_path)
    headline = html.unescape(re.search(r'<p class="headline">(.*?)</p>', page.text)[1])
    assert headline == describe(rows, THRESHOLD, 6.0, 30, widespread=None)
    assert headline.startswith("2 clusters above 2.00: ") and "peak 6.0, right middle frontal gyrus" in headline
    assert page.text.index("headline") < page.text.index('class="verdict warn"') < page.text.index('id="map"')
    _, page, _ = written(tmp_path, threshold=Threshold(99.0, "set by hand"))
    assert "Nothing above 99.00 (highest 6.00)" in page.text
    _, page, _ = written(tmp_path, threshold=Threshold(-99.0, "set by hand"))
    assert "Not to be interpreted: 100 % of the brain is above -99.00" in page.text and "adapt-scanner" in page.text


def test_a_subject_without_a_lesion_mask_has_no_evaluation(tmp_path):
    report = phantom_report(tmp_path)
    scored = replace(report.scored, lesion_mask=None)
    scores = score_map("sub-01", scored.map, scored.inside, None, scored.inside, SETTINGS)
    images = replace(report.subject.images(), lesion_mask=None)
    subject = replace(report.subject, scores=scores, images=lambda: images)
    row = subject_row(scores, THRESHOLD)
    text = re.sub(
        r"<(script|style)\b.*?</\1>",
        "",
        written(tmp_path, scored=scored, subject=subject, row=row)[1].text,
        flags=re.DOTALL,
    )
    for absent in ("AUROC", "average precision", "Dice", "not defined", "esion mask", "false clusters"):
        assert absent not in text, absent
    assert "2 clusters above 2.00" in text


def viewer_of(page):
    return json.loads(re.search(r'id="about">(.*?)</script>', page.text, flags=re.DOTALL)[1])


@pytest.mark.parametrize("threshold", [2.0, 3.59, 99.0])
def test_the_viewer_starts_at_the_threshold(tmp_path, threshold):
    _, page, _ = written(tmp_path, threshold=Threshold(threshold, "set on healthy scans alone"))
    about = viewer_of(page)
    assert about["threshold"] == threshold
    assert about["floor"] < threshold < about["sliderTop"] and about["sliderTop"] >= 6.0, "its highest score is 6"
    # The colours span the floor to the top of the scale, with the threshold at one third.
    colours = np.array([about["red"], about["green"], about["blue"]]).T
    assert (colours[:85] == colours[0]).all() and (colours[86:] != colours[0]).any(axis=1)[5:].all()
    assert about["alpha"][0] == 0 and min(about["alpha"][1:]) > 100
    assert f"coloured from the threshold {threshold:.3g} on" in page.text


def drawn_pictures(page):
    """Pictures of the slices of all planes as integer arrays."""
    slices = re.search(r'<section id="slices">(.*?)</section>', page.text, flags=re.DOTALL)[1]
    for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', slices):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            yield np.asarray(image.convert("RGB")).astype(int)


def coloured_pixels(page):
    """Number of coloured pixels; without a lesion mask, only the map is coloured."""
    return sum((np.ptp(rgb, axis=2) > 40).sum() for rgb in drawn_pictures(page))


def test_pictures_of_a_map_without_clusters_are_grey(tmp_path):
    without_mask = phantom_report(tmp_path).subject
    images = without_mask.images()
    subject = replace(without_mask, images=lambda: replace(images, lesion_mask=None))
    quiet = Threshold(7.0, "set on healthy scans alone")
    assert coloured_pixels(written(tmp_path, subject=subject, threshold=quiet)[1]) == 0
    assert coloured_pixels(written(tmp_path, subject=subject)[1]) > 2000


def test_a_cohort_without_a_threshold_uses_a_fixed_one(tmp_path):
    scores = score_cohort([make(n)[0] for n in range(2)], COHORT_SETTINGS)
    threshold = Threshold.of_z_maps(scores)
    assert threshold.value == 3.09 and "no healthy scan was scored" in threshold.origin
    with_healthy = score_cohort([make(n, healthy=n < 4)[0] for n in range(6)], COHORT_SETTINGS)
    assert Threshold.of_z_maps(with_healthy).value == with_healthy.threshold
    report = CohortReport("Cohort", datetime(2026, 3, 1), [], scores)
    assert threshold_of(report) is None and threshold_of(replace(report, threshold=3.09)) == 3.09
    assert colour_scale_of(replace(report, scores=with_healthy)) == ColourScale.at(with_healthy.threshold)


@pytest.mark.slow
@pytest.mark.parametrize(("modalities", "flagged"), [(1, 0.02), (2, 0.6)])
def test_the_page_of_a_scan_at_1_mm_stays_below_6_mb(tmp_path, modalities, flagged):
    """A noisy head of 256 x 256 x 160 voxels of 1 mm and a template at 1 mm; with two modalities, flagged nearly
    everywhere."""
    random = np.random.default_rng(0)
    template = load_template(1.0)
    z = ndimage.gaussian_filter(random.standard_normal(template.grid.size_vox), 1)
    z = (z / z.std() + norm.isf(flagged) * -1 + THRESHOLD).astype(np.float32)

    def noisy(image, sd):
        return (image + sd * random.standard_normal(image.shape)).clip(0).astype(np.float32)

    inside, on = template.brain_mask, template.grid
    images = SubjectImages(
        Volume(np.where(inside.voxels, noisy(template.t1w.voxels, 0.05), 0), on), Volume(z, on), inside, inside
    )
    grid = Grid((256, 256, 160), np.array([[0, 0, 1.0, -80], [-1, 0, 0, 140], [0, -1, 0, 140], [0, 0, 0, 1]]))
    mm = np.moveaxis(np.indices(grid.size_vox), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    head = ((mm / [76, 105, 120]) ** 2).sum(axis=-1) < 1
    at = np.round(mm - on.affine[:3, 3]).astype(int).clip(0, np.array(on.size_vox) - 1)
    brain = inside.voxels[tuple(np.moveaxis(at, -1, 0))]
    anatomy = np.where(brain, template.t1w.voxels[tuple(np.moveaxis(at, -1, 0))], 0.4 + 0.3 * np.sin(mm[..., 0] / 3))
    scan = noisy(np.where(head, anatomy, 0.02), 0.05)
    own_z = z[tuple(np.moveaxis(at, -1, 0))]
    brain = Volume(brain, grid)
    others = {"FLAIR": Volume(noisy(1 - scan, 0.05) * head, grid)} if modalities > 1 else {}
    own = OwnScan(SubjectImages(Volume(scan, grid), Volume(own_z, grid), brain, brain, others=others), lambda p: p)
    report = phantom_report(tmp_path)
    path = tmp_path / "sub-01.html"
    write_subject_page(
        path,
        replace(
            report,
            subject=replace(report.subject, scores=None, images=lambda: images),
            scored=ScoredMap(own.images.map, brain, lambda p: p),
            own_scan=own,
            grey=template.grey,
            white=template.white,
        ),
        table=tmp_path / "clusters.csv",
    )
    print(f"{path.stat().st_size / 1e6:.2f} MB")
    assert path.stat().st_size < 6e6


def test_a_subject_without_a_map(tmp_path):
    with pytest.raises(UserError, match="sub-02: has no anomaly map, expected one. Run the stage map"):
        written(tmp_path, subject=ReportSubject("sub-02", "patient"))
    assert list(tmp_path.iterdir()) == []
