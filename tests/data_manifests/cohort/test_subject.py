"""Tests of subject records and manifests."""

from pathlib import Path

import pytest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import private

CONTROL = SubjectRecord("01", "control", {"t1w": Path("/a.nii")})
PATIENT = SubjectRecord(
    "02",
    "patient",
    {"t1w": Path("/b.nii"), "flair": Path("/f.nii")},
    session_id="x",
    brain_mask=Path("/m.nii"),
    lesion_mask=Path("/l.nii"),
)


def test_keys_are_bids_names():
    assert CONTROL.key == "sub-01"
    assert PATIENT.key == "sub-02_ses-x"


def test_files_by_column():
    assert CONTROL.files == {"t1w": Path("/a.nii")}
    assert PATIENT.files == {
        "t1w": Path("/b.nii"),
        "flair": Path("/f.nii"),
        "brain_mask": Path("/m.nii"),
        "lesion_mask": Path("/l.nii"),
    }


def test_manifest_order_and_lookup_by_key():
    manifest = Manifest((PATIENT, CONTROL))
    assert list(manifest) == [PATIENT, CONTROL] and len(manifest) == 2
    assert manifest["sub-01"] is CONTROL
    with pytest.raises(KeyError):
        manifest["sub-03"]
    assert manifest.controls == (CONTROL,) and manifest.patients == (PATIENT,)


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        CONTROL.group = "patient"  # type: ignore[misc]


def test_anonymous_replaces_names_contained_in_other_names():
    long = Path("/data/DOE/DOE_JANE_T1.nii.gz")
    records = (
        SubjectRecord("1", "control", {"t1w": Path("/data/DOE/T1.nii.gz")}),
        SubjectRecord("2", "control", {"t1w": long}),
    )
    manifest = Manifest(records)
    assert manifest.anonymous(f"sub-2: {private(long.name)}: is empty.") == "sub-2: its t1w: is empty."
    assert manifest.anonymous(f"sub-2: {private(long)}: no such file.") == "sub-2: its t1w: no such file."
    for unmarked in (f"{long.name} is empty", f"{long} is empty", "see /data/DOE/other", "see DOE_JANE_FLAIR.nii.gz"):
        assert "DOE" not in manifest.anonymous(unmarked)
    assert manifest.anonymous("expected NIfTI (.nii, .nii.gz) or MGZ.") == "expected NIfTI (.nii, .nii.gz) or MGZ."
