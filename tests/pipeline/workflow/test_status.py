"""Attempts at subjects on disk, and the state of a run that is read from them."""

import csv
import io

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import Failure, UserError, private
from voxout.pipeline.workflow import attempts
from voxout.pipeline.workflow.lock import is_locked, sole_user
from voxout.pipeline.workflow.ownership import claim
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.status import status_lines, status_of, status_table

KEYS = ("sub-01", "sub-02", "sub-03", "sub-04")


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Two subjects were done in 100 s and 200 s, the third failed at its second attempt, the fourth runs."""
    clock = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    claim(tmp_path / "out")
    out = OutputFolder(tmp_path / "out")
    StageRecord("check", {}, {}, done=KEYS, failed=(Failure("sub-05", "check", "sub-05: is empty."),)).write(
        out.record("check")
    )
    attempts.plan(out, "prepare", KEYS)
    for key in KEYS[:3]:
        attempts.begin(out, "prepare", key)
    clock[0] += 100
    attempts.end(out, "prepare", "sub-01", 99.0, 512.0)
    attempts.begin(out, "prepare", "sub-03")
    clock[0] += 100
    attempts.end(out, "prepare", "sub-02", 199.0, 600.0)
    attempts.fail(out, "prepare", "sub-03", f"sub-03: {private('/home/doe.nii', 'its t1w')} is bad.")
    attempts.begin(out, "prepare", "sub-04")
    clock[0] += 400
    return out


def test_the_table_has_a_row_per_subject_and_stage(out):
    rows = list(csv.DictReader(io.StringIO(status_table(status_of(out)).decode())))
    found = {(row["stage"], row["subject"]): (row["state"], row["attempt"], row["seconds"]) for row in rows}
    assert found == {
        **{("check", key): ("done", "1", "") for key in KEYS},
        ("check", "sub-05"): ("failed", "1", ""),
        ("prepare", "sub-01"): ("done", "1", "99.0"),
        ("prepare", "sub-02"): ("done", "1", "199.0"),
        ("prepare", "sub-03"): ("failed", "2", ""),
        ("prepare", "sub-04"): ("running", "1", ""),
    }
    by_subject = {row["subject"]: row for row in rows if row["stage"] == "prepare"}
    assert by_subject["sub-03"]["reason"] == "sub-03: its t1w is bad."
    assert by_subject["sub-02"]["memory_mb"] == "600.0" and "cores" in by_subject["sub-02"]["host"]
    assert by_subject["sub-01"]["began"] == "1970-01-12T13:46:40+00:00"


def test_rate_and_time_left(out):
    """Three have ended in 600 s: 18 an hour; one is left, that is 200 s."""
    (_, prepare) = status_of(out)
    assert prepare.per_hour(1_000_600.0) == pytest.approx(18)
    assert prepare.left_s(1_000_600.0) == pytest.approx(200)
    lines = status_lines([prepare], lambda seconds: f"{seconds:.0f} s")
    assert lines == ["prepare: 2 done, 1 failed, 1 running of 4; 18 an hour, about 200 s left of it"]


def test_without_a_run_a_running_subject_was_interrupted(out):
    (_, prepare) = status_of(out, is_working=False)
    assert prepare.attempts["sub-04"].state == "interrupted"
    attempts.begin(out, "prepare", "sub-04")
    assert attempts.read(out, "prepare", "sub-04").number == 2


def test_attempts_count_anew_after_success(out):
    attempts.begin(out, "prepare", "sub-01")
    assert attempts.read(out, "prepare", "sub-01").number == 1


def test_a_record_of_before_counts_as_done(out):
    """Outputs of a version that wrote no attempts."""
    path = out.root / "prepared" / "sub-04" / "record.json"
    StageRecord("prepare", {}, {}, done=("sub-04",), wall_s=7.0).write(path)
    (out.attempts("prepare") / "sub-04.json").unlink()
    (_, prepare) = status_of(out)
    assert (prepare.attempts["sub-04"].state, prepare.attempts["sub-04"].wall_s) == ("done", 7.0)


def test_a_removed_subject_is_forgotten(out):
    attempts.forget(out, "sub-03")
    (_, prepare) = status_of(out)
    assert list(prepare.attempts) == ["sub-01", "sub-02", "sub-04"]
    assert not list(out.root.rglob("*sub-03*"))


def test_attempts_are_not_written_through_a_link(out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    out.attempts("map").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        attempts.begin(out, "map", "sub-01")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_whether_a_run_is_working(tmp_path):
    assert not is_locked(tmp_path)
    with sole_user(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
