"""Places of scans of earlier calls: what is kept, who can read it, and when a scan is shown again."""

import stat

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline.workflow.earlier_subjects import about_subject
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.scan_places import (
    forget_places,
    keep_places,
    scans_of_earlier_call,
    state_of_scans,
)


@pytest.fixture
def out(tmp_path):
    return OutputFolder(tmp_path / "out")


@pytest.fixture
def patient(tmp_path, out):
    scans = {name: tmp_path / f"{name}.nii.gz" for name in ("t1w", "flair")}
    for name, path in scans.items():
        path.write_text(f"{name} of a patient")
    patient = SubjectRecord("01", "patient", scans)
    StageRecord("map", {}, {}, about=about_subject(patient)).write(out.map_record(patient))
    keep_places(out, [patient])
    return patient


EARLIER = SubjectRecord("01", "patient", {})


def test_unchanged_scans_are_found_by_a_later_call(out, patient):
    assert scans_of_earlier_call(out, EARLIER) == (dict(patient.images), "")
    keep_places(out, [SubjectRecord("02", "patient", {"t1w": patient.images["flair"]})])
    assert scans_of_earlier_call(out, EARLIER) == (dict(patient.images), ""), "of another subject"


def test_the_file_is_for_its_owner_only_and_no_record_holds_a_path(out, patient):
    path = out.record("scans")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and str(patient.images["t1w"]) in path.read_text()
    others = [p for p in out.root.rglob("*") if p.is_file() and p != path]
    assert others and not any(str(patient.images["t1w"].parent) in p.read_text() for p in others)


def test_why_a_scan_is_not_shown(out, patient, tmp_path):
    state = state_of_scans(out, EARLIER)
    assert state is not None and state == state_of_scans(out, EARLIER)
    patient.images["flair"].write_text("another")
    assert scans_of_earlier_call(out, EARLIER) == ({"t1w": patient.images["t1w"]}, "")
    assert state_of_scans(out, EARLIER) != state
    patient.images["t1w"].write_text("another")
    assert scans_of_earlier_call(out, EARLIER) == ({}, "The scan has changed since it was mapped")
    patient.images["t1w"].unlink()
    gone = "The scan is no longer where it was when it was mapped"
    assert scans_of_earlier_call(out, EARLIER) == ({}, gone) and state_of_scans(out, EARLIER) is None
    unknown = scans_of_earlier_call(out, SubjectRecord("03", "patient", {}))
    assert unknown == ({}, "The place of this scan was not kept (setting evaluation.keep_scan_places)")


def test_a_damaged_file_is_as_good_as_none(out, patient):
    out.record("scans").write_text("{")
    assert scans_of_earlier_call(out, EARLIER)[0] == {}
    keep_places(out, [patient])
    assert scans_of_earlier_call(out, EARLIER)[0] == dict(patient.images)


def test_removed_subjects_are_forgotten(out, patient):
    forget_places(out, {"sub-02"})
    assert scans_of_earlier_call(out, EARLIER)[0]
    forget_places(out, {"sub-01"})
    assert "sub-01" not in out.record("scans").read_text() and not scans_of_earlier_call(out, EARLIER)[0]
