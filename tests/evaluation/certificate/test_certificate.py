"""The certificate: limits, places, agreement, files and page."""

import csv
import html
import json
import re
from datetime import datetime

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.data_manifests.synthetic.lesion_kinds import KINDS
from voxout.evaluation.certificate.agreement import Cell, cells_of
from voxout.evaluation.certificate.blind_spots import blind_spot_map
from voxout.evaluation.certificate.certificate import Certificate
from voxout.evaluation.certificate.limits import size_text
from voxout.evaluation.certificate.page import CertificatePage, write_certificate_page
from voxout.evaluation.certificate.painted_heads import PaintedHead, found_lesions
from voxout.evaluation.certificate.tables import write_json_file, write_tables
from voxout.evaluation.metrics.components import find_lesions
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

from .painted import ABOUT, certificate, painted_heads

GRID = Grid((30, 34, 30), np.array([[4.0, 0, 0, -58], [0, 4.0, 0, -90], [0, 0, 4.0, -40], [0, 0, 0, 1]]))


@pytest.fixture(scope="module")
def made() -> Certificate:
    return certificate()


def test_limits_are_those_that_the_lesions_were_made_with(made):
    assert set(made.curves) == set(KINDS)
    for kind in KINDS:
        limit = made.limit_of(kind)
        # An eighth of the lesions lies where they are harder to find.
        assert limit is not None and limit.size_ml.value == pytest.approx(0.48, rel=0.25)
        assert limit.size_ml.ci_low < limit.size_ml.value < limit.size_ml.ci_high
    assert made.false_clusters.value == pytest.approx(0.9)


def test_a_lobe_where_lesions_are_missed_has_a_higher_limit(made):
    by_name = {region.name: region for region in made.regions}
    assert by_name["occipital lobe"].limit.size_ml.value > 2 * by_name["frontal lobe"].limit.size_ml.value
    assert by_name["occipital lobe"].found < by_name["occipital lobe"].foretold - 0.1
    assert by_name["white matter"].limit.size_ml.value == pytest.approx(
        by_name["grey matter"].limit.size_ml.value, rel=0.4
    )


def test_the_map_shows_where_lesions_are_missed(made):
    inside = Volume(np.ones(GRID.size_vox, bool), GRID)
    sizes = blind_spot_map(inside, made.places_mm, made.logits[0], made.found, made.curves["dark"], 0.5).voxels
    assert sizes.dtype == np.float32 and sizes.min() >= 0.03 and sizes.max() <= 10
    # y = -80 mm and y = 10 mm
    assert np.median(sizes[5:25, 2, 5:25]) > 2 * np.median(sizes[5:25, 25, 5:25])
    half = inside.with_voxels(np.indices(GRID.size_vox)[0] < 15)
    there = blind_spot_map(half, made.places_mm, made.logits[0], made.found, made.curves["dark"], 0.5).voxels
    assert not there[15:].any()
    np.testing.assert_allclose(there[:15], sizes[:15], rtol=1e-5)


def test_other_heads_foretell_the_share_found_and_a_wrong_curve_does_not(made):
    cells = [cell for cell in made.cells if cell.lesions >= 60]
    assert len(cells) >= 20 and np.mean([cell.agrees for cell in cells]) >= 0.9
    assert sum(cell.lesions for cell in made.cells) == len(made.lesions)
    found = np.zeros(100, bool)
    (cell,) = cells_of("dark", np.full(100, 0.5), np.full(100, 0.4), found)
    assert not cell.agrees and (cell.smallest_ml, cell.largest_ml, cell.observed) == (0.3, 1.0, 0.0)
    assert Cell("dark", 0.3, 1.0, 30, 0.40, 0.50, 0.1).agrees


def test_found_is_what_the_scores_call_found():
    """Random maps with lesions: the same answer as `lesions.csv`."""
    random, grid = np.random.default_rng(0), Grid((20, 20, 20), np.diag([2.0, 2, 2, 1]))
    smallest_mm3, threshold, agreeing = 30.0, 1.5, 0
    for _ in range(20):
        z = random.normal(0, 1.2, grid.size_vox).astype(np.float32)
        labels = np.zeros(grid.size_vox, np.int32)
        for number, corner in enumerate(((2, 2, 2), (2, 12, 2), (12, 2, 12), (14, 14, 14)), start=1):
            x, y, c = corner
            labels[x : x + 2, y : y + 2, c : c + 1] = number
        inside = Volume(np.ones(grid.size_vox, bool), grid)
        settings = EvaluationSettings(smallest_cluster_mm3=smallest_mm3)
        scored = score_map("sub-1", Volume(z, grid), inside, Volume(labels > 0, grid), None, settings)
        theirs = {le.centre_mm: le.found_at is not None and le.found_at >= threshold for le in scored.lesions}
        ours = found_lesions(find_lesions(Volume(z >= np.float32(threshold), grid)), 4, labels, 4)
        for number, found in enumerate(ours, start=1):
            centre = tuple(float(mm) for mm in np.argwhere(labels == number).mean(axis=0) * 2)
            (match,) = [value for at, value in theirs.items() if np.allclose(at, centre)]
            assert match == found
            agreeing += int(found)
    assert 10 < agreeing < 70, "some are found, and some are not"


def test_files_hold_all_numbers(made, tmp_path):
    content = json.loads(write_json_file(tmp_path / "certificate.json", made).read_text())
    assert content["sentence"] == made.sentence and content["about"]["lesions"] == 3200
    limits = {(row["kind"], row["strength"], row["share"]): row for row in content["limits"]}
    assert limits["dark", 0.5, 0.5]["value"] == made.limit_of("dark").size_ml.value
    rows = {}
    for path in write_tables(tmp_path / "tables", made):
        with path.open(newline="") as file:
            rows[path.stem] = list(csv.DictReader(file))
    assert len(rows["lesions"]) == 3200 and len(rows["heads"]) == 10 and len(rows["limits"]) == 30
    points = [row for row in rows["curves"] if row["kind"] == "dark"]
    for row in points:
        assert float(row["ci_low"]) <= float(row["probability"]) <= float(row["ci_high"])
    assert len(points) == 65


def test_the_sentence_has_the_numbers(made):
    assert "3,200 simulated lesions of 0.03 to 10 ml" in made.sentence
    assert "10 healthy participants held out" in made.sentence and "z = 3.70" in made.sentence
    assert re.search(r"dark, by 0\.5 of the grey–white contrast: 0\.\d+ ml \(0\.\d+ to 0\.\d+ ml\)", made.sentence)


def test_sizes_outside_the_painted_range_are_said_to_be_so():
    assert (size_text(10.0), size_text(0.03), size_text(None)) == (
        "more than 10 ml",
        "less than 0.03 ml",
        "not defined",
    )
    assert size_text(0.412) == "0.41 ml"
    few = certificate(heads=2, each=100)
    assert few.limit_of("dark").interval == "" and "interval" not in few.limit_of("dark").text
    assert certificate(heads=4, each=20).curves == {}, "four lesions of a kind in a head"


def test_a_head_is_read_back_and_a_damaged_one_refused(tmp_path):
    (head,) = painted_heads(heads=1, each=9)
    head.save(tmp_path / "head.json")
    assert PaintedHead.load(tmp_path / "head.json") == head
    (tmp_path / "head.json").write_text('{"format": "voxout painted head 1"}')
    with pytest.raises(UserError, match="the lesions painted into a head"):
        PaintedHead.load(tmp_path / "head.json")
    with pytest.raises(UserError, match="found no lesion that could be painted"):
        Certificate(ABOUT, (head.model_copy(update={"lesions": ()}),))


@pytest.mark.parametrize("heads", [10, 2])
def test_the_page_is_self_contained_and_says_what_it_is_about(heads, tmp_path):
    made = certificate(heads=heads)
    inside = Volume(np.ones(GRID.size_vox, bool), GRID)
    sizes = blind_spot_map(inside, made.places_mm, made.logits[0], made.found, made.curves["dark"], 0.5)
    scan = inside.with_voxels(np.random.default_rng(0).random(GRID.size_vox).astype(np.float32))
    page = CertificatePage(made, datetime.now(), {"voxout": "0.1.0"}, scan, inside, sizes, ("few heads",))
    text = html.unescape(write_certificate_page(tmp_path / "index.html", page).read_text())
    assert made.sentence in text and "few heads" in text
    assert text.count('class="card"') == 5 and "(shift, blur)" in text
    assert not re.findall(r'(?:src|href)="https?:', text)
    assert (tmp_path / "figures" / "iso-detection-dark.svg").is_file()
    without = CertificatePage(made, datetime.now(), {}, scan, inside, None)
    assert "Blind spots" not in write_certificate_page(tmp_path / "2.html", without).read_text()
