"""The findings of each patient at the end of `voxout apply` and `voxout run`."""

import json

import pytest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.evaluation.report.findings import describe
from voxout.pipeline.cli import program
from voxout.pipeline.model.map_files import RELATION
from voxout.pipeline.stages import findings, score
from voxout.pipeline.stages.findings import unlike_controls
from voxout.pipeline.workflow.console import Console


def row(ml, peak, side="left", region="precuneus"):
    return {"volume_mm3": str(1000 * ml), "peak_score": str(peak), "side": side, "region": region, "tissue": "fluid"}


def test_clusters_are_told_with_volume_peak_and_place():
    found = [row(1.234, 6.81), row(0.0456, 4.0, "right", "")]
    assert describe(found, 3.5912, 6.81, 30, widespread=None) == (
        "2 clusters above 3.59: 1.2 ml, peak 6.8, left precuneus; 0.046 ml, peak 4.0, right fluid"
    )
    assert (
        describe(found[:1], 3.5912, 6.81, 30, widespread=None)
        == "1 cluster above 3.59: 1.2 ml, peak 6.8, left precuneus"
    )


def test_parts_of_a_cluster_are_findings_of_one_cluster():
    parts = [row(1, 6) | {"part_of": "1+2"}, row(1, 5) | {"part_of": "1+2"}, row(1, 4) | {"part_of": ""}]
    assert describe(parts, 3.6, 6, 30, widespread=None).startswith(
        "3 findings in 2 clusters above 3.60: 1.0 ml, peak 6.0, "
    )


def test_flags_follow_the_place():
    flagged = [row(1, 6) | {"flags": "mirror-symmetric; at a ventricle"}]
    assert describe(flagged, 3.6, 6, 30, widespread=None).endswith("left precuneus (mirror-symmetric, at a ventricle)")


def test_of_many_clusters_the_highest_are_told():
    assert describe([row(12.34, 6)] * 5, 3.6, 6, 30, widespread=None).endswith("left precuneus; and 2 more")


def test_nothing_found_and_only_small_spots():
    assert describe([], 3.59, 3.1, 30, widespread=None) == "nothing above 3.59 (highest 3.10)"
    assert describe([], 3.59, 4.2, 30, widespread=None) == "no cluster of 30 mm³ above 3.59 (highest 4.20)"


def test_a_map_that_is_above_the_threshold_everywhere_has_no_findings():
    found = describe([row(12.34, 6)] * 5, 3.6, 6, 30, widespread=0.456)
    assert found.startswith("not to be interpreted: 46 % of the brain is above 3.60, in both hemispheres")
    assert "peak" not in found and "precuneus" not in found


def test_what_is_unlike_all_controls_is_told(tmp_path):
    path, old = tmp_path / "clusters.json", {"Text": "older than all controls (20 to 75 years)", "Unusual": True}
    path.write_text(json.dumps({RELATION: [old, {"Text": "1 cluster (controls: at most 3)", "Unusual": False}]}))
    assert unlike_controls(path) == ". Unlike all controls of the model: older than all controls (20 to 75 years)"
    for content in ("[]", "{", json.dumps({RELATION: [1]}), json.dumps({RELATION: []})):
        path.write_text(content)
        assert unlike_controls(path) == ""
    assert unlike_controls(tmp_path / "none.json") == ""


@pytest.mark.parametrize(("patients", "more"), [(10, ""), (13, "and 3 more: see ")])
def test_at_most_ten_patients_are_told_and_none_in_the_log(tmp_path, monkeypatch, capsys, patients, more):
    class Done:
        console, manifest = Console(tmp_path / "log.jsonl"), Manifest((SubjectRecord("1", "patient", {}),))

        class out:
            report = tmp_path / "report" / "index.html"

    class Scores:
        subjects = ()

    monkeypatch.setattr(score, "load_scores", lambda run: Scores)
    monkeypatch.setattr(
        findings,
        "finding_lines",
        lambda run, scores, most: ([f"sub-{n}: nothing" for n in range(patients)][:most], patients),
    )
    assert program.closing(Done, ["report"], (), False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"report: {Done.out.report}", "scores that are all undefined are left out"
    assert [line for line in lines if line.startswith("sub-")] == [f"sub-{n}: nothing" for n in range(10)]
    assert lines[-1] == (f"{more}{Done.out.report}" if more else "sub-9: nothing")
    assert "sub-" not in (tmp_path / "log.jsonl").read_text()
