"""A study to NIfTI: the right series, every voxel in its place, and nothing that identifies the patient."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid
from voxout.data_manifests.images.volume import read_volume
from voxout.data_manifests.synthetic.phantoms import small_asymmetric_phantom
from voxout.pipeline.dicom import extra
from voxout.preprocessing.subject_inputs import contrast_agent_warnings

from ..commands import told
from .made_series import FLAIR, PLANES, PLANTED, T1W, T2W, classic, enhanced, in_plane, save

SCAN = small_asymmetric_phantom((34, 40, 36), (5.0, 4.5, 5.5))


def dicom_in(study: Path, out: Path, *more: object) -> tuple[int, str]:
    """Give the command; return exit code and messages."""
    return told("dicom", "in", study, out, *more)


def only_scan(folder: Path, kind: str = "T1w") -> Path:
    (found,) = folder.rglob(f"*_{kind}.nii.gz")
    return found


# -- geometry --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [classic, enhanced])
@pytest.mark.parametrize("plane", [*PLANES, "oblique"])
def test_every_voxel_lies_at_its_point_of_the_patient(tmp_path, plane, make):
    made = in_plane(SCAN, plane)
    study = save(make(made), tmp_path / "study")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 0, messages
    scan = read_volume(only_scan(tmp_path / "out"))
    assert scan.grid.qform_code == scan.grid.sform_code == 1
    indices = np.argwhere(made.array > 0)
    points_lps = made.map_indices_to_reference(indices)
    points = points_lps * [-1, -1, 1]
    at = (np.linalg.inv(scan.affine) @ np.c_[points, np.ones(len(points))].T)[:3].T
    assert np.abs(at - np.round(at)).max() < 1e-4
    assert np.array_equal(scan.voxels[tuple(np.round(at).astype(int).T)], made.array[tuple(indices.T)])
    assert np.count_nonzero(scan.voxels) == len(indices)


def test_intensities_are_rescaled_and_stored_as_whole_numbers(tmp_path):
    made = in_plane(SCAN, "axial")
    study = save(classic(made, RescaleSlope=2, RescaleIntercept=-10, RescaleType="US"), tmp_path / "study")
    assert dicom_in(study, tmp_path / "out")[0] == 0
    path = only_scan(tmp_path / "out")
    assert nib.load(path).get_data_dtype() == np.int16
    scan = read_volume(path)
    assert scan.voxels.min() == 2.0 * made.array.min() - 10 and scan.voxels.max() == 2.0 * made.array.max() - 10


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_images_give_the_same_scan(tmp_path, syntax):
    made = in_plane(SCAN, "sagittal")
    slices = classic(made)
    for dataset in slices:
        dataset.compress(syntax, generate_instance_uid=False)
    code, messages = dicom_in(save(slices, tmp_path / "packed"), tmp_path / "from-packed")
    assert code == 0, messages
    assert dicom_in(save(classic(made), tmp_path / "plain"), tmp_path / "from-plain")[0] == 0
    packed, plain = (read_volume(only_scan(tmp_path / name)) for name in ("from-packed", "from-plain"))
    assert np.array_equal(packed.voxels, plain.voxels) and packed.grid.same_as(plain.grid)


# -- choice of the series ----------------------------------------------------------------------------------------------
def _study(folder: Path, **series: Callable | dict) -> Path:
    """Write a study of several series, each given by its tags, with the number at the end of its name."""
    study = str(generate_uid(None))
    for name, tags in series.items():
        save(classic(in_plane(SCAN, "axial"), study=study, number=int(name.rpartition("_")[2]), **tags), folder / name)
    return folder


LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
DERIVED = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
SCREENSHOT = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImageType": ["DERIVED", "SECONDARY"], "Modality": "OT"}
CT = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}


def test_t1w_and_flair_are_found_by_their_tags(tmp_path):
    study = _study(tmp_path / "study", a_1=LOCALIZER, t2_2=T2W, flair_4=FLAIR, t1_7=T1W, mpr_9=DERIVED, s_10=SCREENSHOT)
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 0, messages
    assert "t1w: series 7" in messages and "flair: series 4" in messages
    sidecars = {
        kind: only_scan(tmp_path / "out", kind).with_suffix("").with_suffix(".json") for kind in ("T1w", "FLAIR")
    }
    about = {kind: json.loads(path.read_text()) for kind, path in sidecars.items()}
    assert about["T1w"]["InversionTime"] == 0.9 and about["FLAIR"]["EchoTime"] == 0.39


def test_a_scan_without_contrast_agent_is_preferred(tmp_path):
    study = _study(tmp_path / "study", t1_3=T1W | {"ContrastBolusAgent": "Gd"}, t1_2=T1W)
    assert "t1w: series 2" in dicom_in(study, tmp_path / "out")[1]
    alone = _study(tmp_path / "alone", t1_3=T1W | {"ContrastBolusAgent": "Gd"})
    assert "warning: series 3: a T1w with contrast agent" in dicom_in(alone, tmp_path / "other")[1]
    found = {name: only_scan(tmp_path / name, "T1w") for name in ("out", "other")}
    assert {name: bool(contrast_agent_warnings(path)) for name, path in found.items()} == {"out": False, "other": True}


def test_several_t1w_series_are_listed_and_one_can_be_chosen(tmp_path):
    study = _study(tmp_path / "study", t1_3=T1W, t1_5=T1W, t2_6=T2W)
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    assert "found 2 T1w series, expected one. Choose one with --series NUMBER: series 3" in messages
    assert "series 5" in messages and "series 6" in messages and messages.count("\n") == 1
    code, messages = dicom_in(study, tmp_path / "out", "--series", 5)
    assert code == 0 and "t1w: series 5" in messages
    code, messages = dicom_in(study, tmp_path / "out", "--series", 3)
    assert code == 2 and "has the scan of another series under this id" in messages
    assert dicom_in(study, tmp_path / "out", "--series", 3, "--subject", "07", "--session", "2")[0] == 0
    assert (tmp_path / "out" / "sub-07" / "ses-2" / "anat" / "sub-07_ses-2_T1w.nii.gz").is_file()
    assert "--series 6: is a T2w, expected a T1w" in dicom_in(study, tmp_path / "out", "--series", 6)[1]
    assert "found no series of this number" in dicom_in(study, tmp_path / "out", "--series", 11)[1]


def test_a_series_of_unknown_contrast_can_be_chosen(tmp_path):
    unknown = T1W | {"EchoTime": None, "RepetitionTime": None}
    study = _study(tmp_path / "study", mr_2=unknown)
    assert "series 2" in dicom_in(study, tmp_path / "out")[1]
    code, messages = dicom_in(study, tmp_path / "out", "--series", 2)
    assert code == 0 and "taken as T1w as you say; its tags say MR of unknown contrast" in messages


@pytest.mark.parametrize(
    ("tags", "kind"), [(CT, "CT"), (T2W, "T2w"), (DERIVED, "derived image"), (SCREENSHOT, "screenshot")]
)
def test_a_study_without_a_t1w_says_what_it_has(tmp_path, tags, kind):
    code, messages = dicom_in(_study(tmp_path / "study", a_4=tags), tmp_path / "out")
    assert code == 2 and messages.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "found no T1w series, expected one" in messages and f": {kind}, 36 images" in messages


def test_a_screenshot_is_never_converted(tmp_path):
    study = _study(tmp_path / "study", t1_2=T1W | {"BurnedInAnnotation": "YES"})
    code, messages = dicom_in(study, tmp_path / "out", "--series", 2)
    assert code == 2 and "--series 2: is a screenshot, expected a T1w" in messages


def test_no_dicom_and_no_folder(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("nothing")
    code, messages = dicom_in(tmp_path / "study", tmp_path / "out")
    assert code == 2 and "holds no DICOM image (1 other file)" in messages
    code, messages = dicom_in(tmp_path / "none", tmp_path / "out")
    assert code == 2 and "no such file or folder" in messages


@pytest.mark.parametrize("tag", ["PatientID", "PatientName", "PatientBirthDate"])
def test_images_of_two_persons_are_refused(tmp_path, tag):
    slices = classic(in_plane(SCAN, "axial"))
    setattr(slices[5], tag, "19500101")
    code, messages = dicom_in(save(slices, tmp_path / "study"), tmp_path / "out")
    assert code == 2 and f"holds images of 2 persons (they differ in {tag})" in messages


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extra, "_PACKAGES", ("pydicom", "no_such_package"))
    code, messages = dicom_in(tmp_path, tmp_path / "out")
    assert (
        code == 2 and "DICOM: the package no_such_package is not installed, expected voxout with its extra" in messages
    )


def test_a_folder_inside_the_study_is_refused(tmp_path):
    study = save(classic(in_plane(SCAN, "axial")), tmp_path / "study")
    code, messages = dicom_in(study, study / "out")
    assert code == 2 and "lies in the folder of the study" in messages and not (study / "out").exists()


# -- privacy ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [classic, enhanced])
def test_nothing_that_identifies_the_patient_is_written(tmp_path, make):
    study = save(make(in_plane(SCAN, "sagittal")), tmp_path / "study")
    out = tmp_path / "out"
    assert dicom_in(study, out)[0] == 0
    path = only_scan(out)
    header = nib.load(path).header
    assert header["descrip"].item() == b"" and header["intent_name"].item() == b"" and not header.extensions
    files = [file for file in out.rglob("*") if file.is_file() and ".lock" not in file.name]
    assert {file.suffix for file in files} == {".gz", ".json"}
    for file in files:
        content = nib.load(file).to_bytes() if file.suffix == ".gz" else file.read_bytes()
        for planted in PLANTED:
            assert planted.lower().encode() not in content.lower(), (file.name, planted)
            assert planted.lower() not in str(file.relative_to(out)).lower()
    (source,) = (out / "source").iterdir()
    assert stat.S_IMODE((out / "source").stat().st_mode) == 0o700 and stat.S_IMODE(source.stat().st_mode) == 0o600
    assert json.loads(source.read_text())["study"] == str(study)


def test_a_changed_file_is_not_replaced_and_the_same_call_twice_gives_the_same(tmp_path):
    study = save(classic(in_plane(SCAN, "axial")), tmp_path / "study")
    assert dicom_in(study, tmp_path / "out")[0] == 0
    path = only_scan(tmp_path / "out")
    before = path.read_bytes()
    assert dicom_in(study, tmp_path / "out")[0] == 0
    assert path.read_bytes() == before
    path.write_bytes(b"mine")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 2 and "which voxout did not write or which was changed" in messages
    assert path.read_bytes() == b"mine"
