"""From a DICOM study to results in DICOM with a fitted model, one command each way, and no name in between."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from voxout.data_manifests.cohort.output_paths import OutputFolder

from ..commands import told
from ..planted_name import unpacked
from .made_series import PLANTED, classic, enhanced, in_plane, save


@pytest.fixture(scope="module", params=[classic, enhanced])
def applied(request, tmp_path_factory, model, head) -> tuple[Path, OutputFolder, str]:
    """The study, the output folder, and the key of the subject."""
    folder = tmp_path_factory.mktemp("applied")
    study, out = save(request.param(in_plane(head, "sagittal")), folder / "study"), OutputFolder(folder / "out")
    code, messages = told("apply", model, "--dicom", study, out.root, "--device", "cpu")
    assert code == 0 and "t1w: series 3" in messages, messages
    (source,) = (out.received / "source").iterdir()
    return study, out, source.stem


def test_a_study_is_mapped_and_exported_by_one_command_each(applied, tmp_path):
    study, out, key = applied
    code, messages = told("dicom", "out", out.root, key, tmp_path / "dicom")
    assert code == 0 and f"{key}: " in messages, messages
    names = {path.stem for path in (tmp_path / "dicom").iterdir()}
    assert {"findings", "findings-binary", "z-scores", "overview", "report", "slice-001"} <= names
    scores = dcmread(tmp_path / "dicom" / "z-scores.dcm")
    assert scores.FrameOfReferenceUID == dcmread(next(study.iterdir())).FrameOfReferenceUID


def test_no_planted_name_is_in_anything_but_dicom(applied):
    _, out, _ = applied
    files = [path for path in out.root.rglob("*") if path.is_file() and path.parent.name != "source"]
    assert {path.suffix for path in files} >= {".gz", ".json", ".jsonl", ".html", ".png", ".csv"}
    for path in files:
        contents = [content.lower() for content in unpacked(path.read_bytes())]
        for planted in PLANTED:
            assert not any(planted.lower().encode() in content for content in contents), (path.name, planted)
            assert planted.lower() not in path.name.lower()


def test_the_same_command_again_resumes(applied, model):
    study, out, _ = applied
    code, messages = told("apply", model, "--dicom", study, out.root, "--device", "cpu", "-v")
    assert code == 0 and "up to date" in messages


def test_a_subject_is_removed_with_its_scan_and_its_source(applied, tmp_path):
    _, out, key = applied
    copy = OutputFolder(Path(shutil.copytree(out.root, tmp_path / "out")))
    assert list(copy.received.rglob("*_T1w.nii.gz"))
    assert told("remove", copy.root, key)[0] == 0
    assert not copy.received.exists()


def test_a_dry_run_checks_the_study_and_writes_nothing(applied, model, tmp_path):
    code, messages = told("apply", model, "--dicom", applied[0], tmp_path / "out", "--dry-run")
    assert code == 0 and "t1w: series 3" in messages and not (tmp_path / "out").exists()


def test_options_of_a_study_need_one(model, cohort, tmp_path):
    code, messages = told("apply", model, cohort, tmp_path / "out", "--series", 3)
    assert code == 2 and "--series: found no --dicom" in messages


def test_a_scan_that_is_converted_first_and_mapped_later_can_be_exported_too(applied, model, tmp_path):
    study, out, key = applied
    scans = tmp_path / "scans"
    assert told("dicom", "in", study, scans, "--subject", "07")[0] == 0
    scan = scans / "sub-07" / "anat" / "sub-07_T1w.nii.gz"
    assert told("apply", model, scan, tmp_path / "out", "--device", "cpu")[0] == 0
    code, messages = told("dicom", "out", tmp_path / "out", "sub-07", tmp_path / "later", "--scans", scans)
    assert code == 0, messages
    assert told("dicom", "out", out.root, key, tmp_path / "at-once")[0] == 0
    later, at_once = (dcmread(tmp_path / name / "z-scores.dcm").FloatPixelData for name in ("later", "at-once"))
    assert np.array_equal(np.frombuffer(later, np.float32), np.frombuffer(at_once, np.float32))
