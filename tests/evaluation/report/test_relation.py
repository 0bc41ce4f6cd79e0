import json

import numpy as np
import pytest
from voxout.evaluation.report.relation import relation_to_controls
from voxout.evaluation.scoring.control_summary import ControlSummary
from voxout.evaluation.scoring.operating_point import StoredPoint

CONTROLS = ControlSummary.of(
    [0, 2, 1, 1],
    [0.001, 0.0005, 0.002, 0.0011],
    [23.4, None, 61.0, 44.0],
    [np.array([1.0, 1, 1.2]), np.ones(3)],
    latent_distances=[0.35, 0.2, 0.31, 0.3],
)


def scores(share):
    z = np.zeros(10_000)
    z[: round(share * 10_000)] = 4
    return z


def relation(share=0.001, clusters=1, age=40.0, spacing=(1.0, 1.0, 1.0), distance=0.3):
    found = relation_to_controls(
        CONTROLS, scores=scores(share), clusters=clusters, age=age, spacing_mm=spacing, latent_distance=distance
    )
    return [part.text for part in found], [part.unusual for part in found]


def test_the_summary_rounds_ages_outwards_and_sorts():
    shares, distances = (0.0005, 0.001, 0.0011, 0.002), (0.2, 0.3, 0.31, 0.35)
    expected = ControlSummary((0, 1, 1, 2), shares, (20.0, 65.0), (1.0, 1.2), latent_distances=distances)
    assert expected == CONTROLS
    assert ControlSummary.of([0], [0.0], [None], []) == ControlSummary((0,), (0.0,))


def test_a_patient_like_the_controls():
    texts, unusual = relation()
    assert texts == [
        "of an age within that of the controls (20 to 65 years)",
        "voxels of 1 x 1 x 1 mm (controls 1 to 1.2 mm)",
        "latents of the whole brain at a distance of 0.30, median of -log10 p (controls: median 0.30, at most 0.35)",
        "0.1 % of the voxels above p < .001 (controls: median 0.11 %, at most 0.2 %)",
        "1 cluster (controls: median 1, at most 2)",
    ]
    assert not any(unusual)


@pytest.mark.parametrize(
    ("changes", "which", "text"),
    [
        ({"age": 66.0}, 0, "older than all controls (20 to 65 years)"),
        ({"age": 8.0}, 0, "younger than all controls"),
        ({"spacing": (0.5, 0.5, 1.0)}, 1, "voxels of 0.5 x 0.5 x 1 mm"),
        ({"spacing": (1.0, 1.0, 5.0)}, 1, "voxels of 1 x 1 x 5 mm"),
        ({"distance": 0.36}, 2, "latents of the whole brain at a distance of 0.36"),
        ({"share": 0.003}, 3, "0.3 % of the voxels"),
        ({"clusters": 3}, 4, "3 clusters"),
    ],
)
def test_what_lies_outside_of_the_controls_is_unusual(changes, which, text):
    texts, unusual = relation(**changes)
    assert texts[which].startswith(text) and [i for i, is_unusual in enumerate(unusual) if is_unusual] == [which]


def test_what_is_unknown_is_left_out():
    assert len(relation(age=None, spacing=None, distance=None)[0]) == 2
    assert relation_to_controls(None, scores=scores(0), clusters=1, age=40.0, spacing_mm=None) == ()


def test_the_summary_is_stored_with_the_threshold_and_old_files_have_none(tmp_path):
    point = StoredPoint(3.6, (3.5,), 4, {"false_clusters": 1.0}, "a model", (40.0,), CONTROLS)
    point.save(tmp_path / "new.json")
    loaded = StoredPoint.load(tmp_path / "new.json")
    assert loaded == point and loaded.point.controls == CONTROLS
    old = StoredPoint(3.6, (3.5,), 4, {"false_clusters": 1.0}, "a model", (40.0,))
    old.save(tmp_path / "old.json")
    content = json.loads((tmp_path / "old.json").read_text())
    del content["controls"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert StoredPoint.load(tmp_path / "old.json") == old
