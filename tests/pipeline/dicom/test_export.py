"""From a DICOM study to results in DICOM: one command each way, equal on the grid, valid, and free of names between."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, StoragePresentationContexts, evt
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord, parts_of_key
from voxout.data_manifests.images.volume import read_labels, read_map
from voxout.evaluation.report.cluster_table import read_clusters

from ..commands import told as voxout
from ..planted_name import unpacked
from .made_series import PLANTED, classic, enhanced, in_plane, save

CASES = [("axial", classic), ("oblique", enhanced), ("sagittal", classic), ("coronal", enhanced)]
KINDS = {"findings", "findings-binary", "overview", "report", "z-scores"}


class Done:
    """A study, its results, and what was exported of them."""

    def __init__(self, folder: Path, model: Path, made: list[Dataset]):
        self.study = save(made, folder / "study")
        self.out, self.target = OutputFolder(folder / "out"), folder / "dicom"
        self.applied = voxout("apply", model, "--dicom", self.study, self.out.root, "--device", "cpu")
        (self.key,) = (path.stem for path in (folder / "out" / "dicom-in" / "source").iterdir())
        self.exported = voxout("dicom", "out", self.out.root, self.key, self.target)

    @property
    def subject(self) -> SubjectRecord:
        return SubjectRecord(parts_of_key(self.key)[0], "patient", {})

    def object(self, name: str) -> Dataset:
        return dcmread(self.target / f"{name}.dcm")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[1].__name__} {case[0]}")
def done(request, tmp_path_factory, model, head) -> Done:
    plane, make = request.param
    return Done(tmp_path_factory.mktemp("done"), model, make(in_plane(head, plane)))


@pytest.fixture(scope="module")
def one(tmp_path_factory, model, head) -> Done:
    return Done(tmp_path_factory.mktemp("one"), model, classic(in_plane(head, "sagittal")))


def test_both_commands_succeed(done):
    assert done.applied[0] == 0, done.applied[1]
    assert done.exported[0] == 0, done.exported[1]
    assert {path.stem for path in done.target.iterdir()} - KINDS == {
        f"slice-{number:03}" for number in range(1, len(list(done.target.glob("slice-*"))) + 1)
    }
    assert stat.S_IMODE(done.target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in done.target.iterdir()} == {0o600}


def _at_points(volume: highdicom.Volume, grid, points: np.ndarray) -> np.ndarray:
    """Values of an object at voxels of a NIfTI grid, by their place in the patient."""
    ras = (grid.affine @ np.c_[points, np.ones(len(points))].T)[:3].T
    indices = volume.map_reference_to_indices(ras * [-1, -1, 1])
    assert np.abs(indices - np.round(indices)).max() < 1e-3
    return volume.array[tuple(np.round(indices).astype(int).T)]


def test_map_and_findings_are_read_back_equal_on_the_grid_of_the_scan(done):
    z = read_map(done.out.native_map(done.subject))
    labels = read_labels(done.out.cluster_labels(done.subject, "native"))
    assert labels.voxels.any()
    points = np.argwhere(np.ones(z.voxels.shape, bool))
    back = highdicom.imread(done.target / "z-scores.dcm").get_volume()
    assert np.array_equal(_at_points(back, z.grid, points), z.voxels.ravel())
    assert back.array.shape == highdicom_volume(done).array.shape and back.geometry_equal(highdicom_volume(done))
    findings = highdicom.seg.segread(done.target / "findings.dcm").get_volume(combine_segments=True)
    assert np.array_equal(_at_points(findings, labels.grid, points), labels.voxels.ravel())
    binary = highdicom.seg.segread(done.target / "findings-binary.dcm")
    packed = binary.get_volume(combine_segments=True)
    assert np.array_equal(_at_points(packed, labels.grid, points), np.minimum(labels.voxels, 11).ravel())


def highdicom_volume(done: Done) -> highdicom.Volume:
    images = [dcmread(path) for path in done.study.iterdir()]
    if len(images) == 1:
        return highdicom.imread(next(done.study.iterdir())).get_volume()
    return highdicom.get_volume_from_series(images)


def test_no_frame_is_left_out_and_findings_have_their_names(one):
    labels = read_labels(one.out.cluster_labels(one.subject, "native")).voxels
    rows = read_clusters(one.out.subject_clusters(one.subject))
    slices = len(list(one.study.iterdir()))
    assert one.object("findings").NumberOfFrames == slices
    assert one.object("findings-binary").NumberOfFrames == slices * min(int(labels.max()), 11)
    segments = one.object("findings").SegmentSequence
    names = [segment.SegmentLabel for segment in segments if segment.SegmentNumber]
    assert names == [f"Finding {row['rank']}: {row['side']} {row['region'] or row['tissue']}"[:64] for row in rows]
    assert segments[-1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Anomaly relative to healthy brains"


def test_objects_belong_to_the_study_and_have_uids_of_their_own(done):
    image = dcmread(next(done.study.iterdir()))
    objects = [dcmread(path) for path in done.target.iterdir()]
    for made in objects:
        assert made.StudyInstanceUID == image.StudyInstanceUID and made.PatientID == image.PatientID
        assert str(made.PatientName) == str(image.PatientName) == "Wexquibl^Jörg"
        assert made.AccessionNumber == image.AccessionNumber and made.StudyDate == image.StudyDate
        assert "research use only" in made.SeriesDescription
    assert len({made.SOPInstanceUID for made in objects}) == len(objects)
    assert len({made.SeriesInstanceUID for made in objects}) == 6
    assert image.SeriesInstanceUID not in {made.SeriesInstanceUID for made in objects}
    for name in ("findings", "findings-binary", "z-scores"):
        assert done.object(name).FrameOfReferenceUID == image.FrameOfReferenceUID


def test_objects_conform_to_the_standard(done):
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    program = shutil.which("dciodvfy", path=os.pathsep.join(folders))
    if program is None:
        pytest.skip("no dciodvfy (package dicom3tools)")
    for path in sorted(done.target.iterdir()):
        if path.stem.startswith("slice-") and path.stem != "slice-001":
            continue
        told = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in told.stderr.splitlines() if line.startswith("Error")]
        assert told.returncode == 0 and not errors, (path.name, errors)


def test_a_new_export_has_new_uids(one, tmp_path):
    assert voxout("dicom", "out", one.out.root, one.key, tmp_path / "again")[0] == 0
    for path in (tmp_path / "again").iterdir():
        assert dcmread(path).SOPInstanceUID != dcmread(one.target / path.name).SOPInstanceUID


def test_pictures_show_the_map_and_pages_can_be_turned(one):
    picture = one.object("slice-010").pixel_array
    assert picture.shape[2] == 3 and (picture.max(axis=2) - picture.min(axis=2).astype(int)).max() > 100
    pages = one.object("overview")
    assert pages.pixel_array.shape[0] == pages.NumberOfFrames == len(pages.PageNumberVector) >= 2
    report = one.object("report")
    assert report.EncapsulatedDocument[:5] == b"%PDF-" and report.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert b"%%EOF" in report.EncapsulatedDocument[-8:]


# -- privacy ---------------------------------------------------------------------------------------------------------
def test_no_planted_name_is_in_anything_but_the_dicom_that_goes_back(done):
    files = [path for path in done.out.root.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".gz", ".json", ".jsonl", ".html", ".png", ".csv"}
    for path in files:
        contents = [content.lower() for content in unpacked(path.read_bytes())]
        for planted in PLANTED:
            if path.parent.name == "source":
                continue  # readable by the owner only; it names the place of the study
            assert not any(planted.lower().encode() in content for content in contents), (path.name, planted)
            assert planted.lower() not in path.name.lower()
    for name in ("overview", "report"):
        made = done.object(name)
        shown = made.EncapsulatedDocument if name == "report" else made.PixelData
        assert not any(planted.encode() in shown for planted in PLANTED)


def test_removing_the_subject_removes_its_scan_and_source(one, tmp_path):
    copy = OutputFolder(Path(shutil.copytree(one.out.root, tmp_path / "out")))
    assert list(copy.received.rglob("*_T1w.nii.gz"))
    assert voxout("remove", copy.root, one.key)[0] == 0
    assert not copy.received.exists() or not any(copy.received.rglob("*"))


# -- in the way ------------------------------------------------------------------------------------------------------
def test_what_cannot_be_exported_says_so(one, cohort, model, tmp_path):
    for words, sentence in (
        ((one.out.root, "sub-99", tmp_path / "a"), "holds no map and page of sub-99"),
        ((one.out.root, one.key, one.target), "exists and is not empty"),
        ((one.out.root, one.key, one.out.root / "files"), "lies in the output folder, which is free of"),
        ((model, "sub-patient001", tmp_path / "a"), "sub-patient001: its original series is not known"),
        ((one.out.root, one.key, tmp_path / "a", "--study", one.out.root), "holds no DICOM image"),
        ((one.out.root, one.key, tmp_path / "a", "--study", tmp_path / "gone"), "is no longer there"),
        ((one.out.root, one.key, tmp_path / "a", "--send", "nowhere"), "expected AET@HOST:PORT"),
    ):
        code, messages = voxout("dicom", "out", *words)
        assert code == 2 and sentence in messages and not (tmp_path / "a").exists(), messages


def test_images_of_another_study_are_refused(one, head, tmp_path):
    other = save(classic(in_plane(head, "sagittal")), tmp_path / "other")
    code, messages = voxout("dicom", "out", one.out.root, one.key, tmp_path / "a", "--study", other)
    assert code == 2 and "does not hold the series that was mapped" in messages


def test_a_moved_study_is_found_again(one, tmp_path):
    moved = Path(shutil.copytree(one.study, tmp_path / "moved"))
    code, messages = voxout("dicom", "out", one.out.root, one.key, tmp_path / "a", "--study", moved)
    assert code == 0 and "DICOM files" in messages


def test_a_dry_run_checks_the_study_and_writes_nothing(one, model, tmp_path):
    code, messages = voxout("apply", model, "--dicom", one.study, tmp_path / "out", "--dry-run")
    assert code == 0 and "t1w: series 3" in messages and not (tmp_path / "out").exists()


def test_options_of_a_study_need_one(model, cohort, tmp_path):
    code, messages = voxout("apply", model, cohort, tmp_path / "out", "--series", 3)
    assert code == 2 and "--series: found no --dicom" in messages


def test_a_converted_scan_that_is_mapped_later_can_be_exported_too(one, model, tmp_path):
    scans = tmp_path / "scans"
    assert voxout("dicom", "in", one.study, scans, "--subject", "07")[0] == 0
    scan = scans / "sub-07" / "anat" / "sub-07_T1w.nii.gz"
    assert voxout("apply", model, scan, tmp_path / "out", "--device", "cpu")[0] == 0
    code, messages = voxout("dicom", "out", tmp_path / "out", "sub-07", tmp_path / "a", "--scans", scans)
    assert code == 0, messages
    assert np.array_equal(
        dcmread(tmp_path / "a" / "z-scores.dcm").FloatPixelData, one.object("z-scores").FloatPixelData
    )


# -- archive ---------------------------------------------------------------------------------------------------------
@contextmanager
def archive(stored: list[Dataset], *, refuses: str = "", status: int = 0) -> Iterator[str]:
    """A server on loopback that keeps what it gets."""

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        stored.append(dataset)
        return status

    entity = AE(ae_title="PACS")
    for context in StoragePresentationContexts:
        if context.abstract_syntax != refuses:
            entity.add_supported_context(context.abstract_syntax, ExplicitVRLittleEndian)
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.66.7", ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield f"PACS@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def test_nothing_is_sent_by_default_and_all_is_stored_on_request(one, tmp_path):
    stored: list[Dataset] = []
    with archive(stored) as address:
        assert voxout("dicom", "out", one.out.root, one.key, tmp_path / "a")[0] == 0 and not stored
        code, messages = voxout("dicom", "out", one.out.root, one.key, tmp_path / "b", "--send", address)
    assert code == 0 and f"sent to {address}" in messages
    written = {dcmread(path).SOPInstanceUID: dcmread(path) for path in (tmp_path / "b").iterdir()}
    assert {dataset.SOPInstanceUID for dataset in stored} == set(written)
    for dataset in stored:
        assert dataset == written[dataset.SOPInstanceUID]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"refuses": "1.2.840.10008.5.1.4.1.1.30"}, "refused Parametric Map Storage (1), expected all"),
        ({"status": 0xA700}, "stored 0 files of"),
    ],
)
def test_an_archive_that_refuses_is_told_and_the_files_stay(one, tmp_path, how, sentence):
    with archive([], **how) as address:
        code, messages = voxout("dicom", "out", one.out.root, one.key, tmp_path / "a", "--send", address)
    assert code == 2 and sentence in messages and len(list((tmp_path / "a").iterdir())) > 10


def test_an_archive_that_is_not_there_is_told(one, tmp_path):
    code, messages = voxout("dicom", "out", one.out.root, one.key, tmp_path / "a", "--send", "PACS@127.0.0.1:9")
    assert code == 2 and "--send PACS@127.0.0.1:9: cannot be reached" in messages
