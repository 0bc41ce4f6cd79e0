"""Results as DICOM: equal on the grid of the original series, valid, of the same study, stored by an archive."""

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
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import read_labels, read_map
from voxout.evaluation.report.cluster_table import read_clusters
from voxout.pipeline.dicom.objects import parametric_map, segmentations
from voxout.pipeline.dicom.results import read_results
from voxout.pipeline.dicom.send import Archive, send

from ..commands import told
from .made_series import PLANES, classic, enhanced, in_plane, save
from .mapped import Mapped, map_by_hand, read_all
from .test_receive import SCAN

LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
STORED = {
    LABELMAP,
    EncapsulatedPDFStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Mapped:
    return Mapped(tmp_path_factory.mktemp("one"), classic(in_plane(SCAN, "sagittal")))


@pytest.fixture(scope="module")
def objects(one, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("objects") / "dicom"
    code, messages = one.export(target)
    assert code == 0 and "sent" not in messages, messages
    return target


# -- geometry --------------------------------------------------------------------------------------------------------
def _at_points(volume: highdicom.Volume, grid, points: np.ndarray) -> np.ndarray:
    """Values of an object at the voxels of a NIfTI grid, by their place in the patient."""
    ras = (grid.affine @ np.c_[points, np.ones(len(points))].T)[:3].T
    indices = volume.map_reference_to_indices(ras * [-1, -1, 1])
    assert np.abs(indices - np.round(indices)).max() < 1e-3
    return volume.array[tuple(np.round(indices).astype(int).T)]


@pytest.mark.parametrize("make", [classic, enhanced])
@pytest.mark.parametrize("plane", [*PLANES, "oblique"])
def test_map_and_findings_are_read_back_equal_on_the_grid_of_the_series(tmp_path, plane, make):
    mapped = Mapped(tmp_path, make(in_plane(SCAN, plane)))
    results = read_results(mapped.out, mapped.key)
    for name, made in {**segmentations(results), "z-scores": parametric_map(results)}.items():
        made.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    z = read_map(mapped.out.native_map(mapped.subject))
    labels = read_labels(mapped.out.cluster_labels(mapped.subject, "native"))
    assert labels.voxels.max() >= 2
    points = np.argwhere(np.ones(z.voxels.shape, bool))
    read = [dcmread(path) for path in mapped.study.iterdir()]
    if make is enhanced:
        source = highdicom.imread(next(mapped.study.iterdir())).get_volume()
    else:
        source = highdicom.get_volume_from_series(read)
    found = {
        "z-scores": (highdicom.imread(tmp_path / "z-scores.dcm").get_volume(), z),
        "findings": (_segments(tmp_path / "findings.dcm"), labels),
        "findings-binary": (_segments(tmp_path / "findings-binary.dcm"), labels),
    }
    for name, (volume, expected) in found.items():
        assert volume.geometry_equal(source, tol=1e-6), name
        assert volume.frame_of_reference_uid == read[0].FrameOfReferenceUID
        assert np.array_equal(_at_points(volume, expected.grid, points), expected.voxels.ravel()), name


def _segments(path: Path) -> highdicom.Volume:
    return highdicom.seg.segread(path).get_volume(combine_segments=True)


def test_no_frame_is_left_out_and_findings_have_their_names(one, objects):
    read, slices = read_all(objects), len(list(one.study.iterdir()))
    rows = read_clusters(one.out.subject_clusters(one.subject))
    assert read["findings"].NumberOfFrames == slices
    assert read["findings-binary"].NumberOfFrames == slices * len(rows)
    for name in ("findings", "findings-binary"):
        segments = [segment for segment in read[name].SegmentSequence if segment.SegmentNumber]
        assert [segment.SegmentLabel for segment in segments] == [f"Finding {n}: left precuneus" for n in (1, 2)]
        assert segments[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Anomaly relative to healthy brains"
        assert segments[0].SegmentAlgorithmType == "AUTOMATIC"


def test_a_map_without_findings_has_no_segmentation(tmp_path):
    mapped = Mapped(tmp_path, classic(in_plane(SCAN, "axial")), findings=False)
    code, messages = mapped.export(tmp_path / "dicom")
    assert code == 0 and "Nothing above 4.00 (highest 3.00)" in messages
    names = {path.stem for path in (tmp_path / "dicom").iterdir()}
    assert {"z-scores", "overview", "report", "slice-001"} <= names and not {n for n in names if "finding" in n}


# -- the objects -----------------------------------------------------------------------------------------------------
def test_a_map_that_is_above_the_threshold_everywhere_is_not_to_be_interpreted(tmp_path):
    mapped = Mapped(tmp_path, classic(in_plane(SCAN, "axial")), shift=4)
    code, messages = mapped.export(tmp_path / "dicom")
    assert code == 0 and f"{mapped.key}: Not to be interpreted: " in messages, messages
    assert "peak" not in messages


def test_objects_belong_to_the_study_and_have_uids_of_their_own(one, objects):
    image, read = dcmread(next(one.study.iterdir())), read_all(objects)
    for made in read.values():
        assert made.StudyInstanceUID == image.StudyInstanceUID and made.PatientID == image.PatientID
        assert str(made.PatientName) == str(image.PatientName) == "Wexquibl^Jörg"
        assert made.AccessionNumber == image.AccessionNumber and made.StudyDate == image.StudyDate
        assert "research use only" in made.SeriesDescription
    assert len({made.SOPInstanceUID for made in read.values()}) == len(read)
    assert len({made.SeriesInstanceUID for made in read.values()}) == 6
    assert image.SeriesInstanceUID not in {made.SeriesInstanceUID for made in read.values()}
    again = parametric_map(read_results(one.out, one.key))
    assert again.SOPInstanceUID != read["z-scores"].SOPInstanceUID
    assert again.SeriesInstanceUID != read["z-scores"].SeriesInstanceUID


def test_only_the_owner_can_read_the_files(objects):
    assert stat.S_IMODE(objects.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in objects.iterdir()} == {0o600}


@pytest.mark.parametrize("make", [classic, enhanced])
def test_objects_conform_to_the_standard(tmp_path, make):
    program = shutil.which("dciodvfy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("no dciodvfy (package dicom3tools)")
    mapped = Mapped(tmp_path, make(in_plane(SCAN, "oblique")))
    assert mapped.export(tmp_path / "dicom")[0] == 0
    for name in ("slice-001", "overview", "findings", "findings-binary", "z-scores", "report"):
        path = tmp_path / "dicom" / f"{name}.dcm"
        done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert done.returncode == 0 and not errors, (name, errors)


def test_pictures_show_map_and_findings_and_pages_can_be_turned(objects):
    read = read_all(objects)
    pictures = [made.pixel_array for name, made in read.items() if name.startswith("slice-")]
    assert len({picture.shape for picture in pictures}) == 1 and len(pictures) >= 20
    outlined = [(picture == (70, 255, 130)).all(axis=2).sum() for picture in pictures]
    assert max(outlined) > 20 and min(outlined) == 0
    pages = read["overview"]
    assert pages.pixel_array.shape[0] == pages.NumberOfFrames == len(pages.PageNumberVector) >= 3
    report = read["report"]
    assert report.EncapsulatedDocument[:5] == b"%PDF-" and report.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert b"Wexquibl" not in report.EncapsulatedDocument


# -- what is in the way ----------------------------------------------------------------------------------------------
def test_what_cannot_be_exported_says_so(one, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    target = tmp_path / "dicom"
    for words, sentence in (
        (("sub-99", target), "holds no map and page of sub-99"),
        ((one.key, tmp_path / "full"), "exists and is not empty"),
        ((one.key, one.out.root / "files"), "lies in the output folder, which is free of patients' names"),
        ((one.key, target, "--scans", tmp_path), f"{one.key}: its original series is not known"),
        ((one.key, target, "--study", tmp_path / "gone"), "is no longer there"),
        ((one.key, target, "--send", "nowhere"), "--send nowhere: expected AET@HOST:PORT"),
    ):
        code, messages = told("dicom", "out", one.out.root, *words)
        assert code == 2 and sentence in messages and messages.count("\n") == 1 and not target.exists(), messages


def test_images_of_another_study_are_refused_and_moved_ones_are_found(one, tmp_path):
    other = save(classic(in_plane(SCAN, "sagittal")), tmp_path / "other")
    code, messages = one.export(tmp_path / "a", "--study", other)
    assert code == 2 and "does not hold the series that was mapped" in messages
    moved = Path(shutil.copytree(one.study, tmp_path / "moved"))
    assert read_results(one.out, one.key, study=moved).key == one.key


def test_a_map_of_another_scan_is_refused(tmp_path):
    mapped = Mapped(tmp_path, classic(in_plane(SCAN, "axial")))
    other = Mapped(tmp_path / "other", classic(in_plane(SCAN, "axial"), RescaleSlope=3, RescaleIntercept=0))
    (path,) = other.out.received.rglob("*_T1w.nii.gz")
    map_by_hand(mapped.out, mapped.subject, path)
    code, messages = mapped.export(tmp_path / "dicom")
    assert code == 2 and "its map was made from another scan than the converted one" in messages


# -- archive ---------------------------------------------------------------------------------------------------------
@contextmanager
def archive(stored: list[Dataset], *, without: str = "", status: int = 0) -> Iterator[str]:
    """A server on loopback that keeps what it gets."""

    def keep(event: evt.Event) -> int:
        stored.append(event.dataset)
        return status

    entity = AE(ae_title="PACS")
    for kind in sorted(STORED - {without}):
        entity.add_supported_context(kind, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield f"PACS@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def test_all_is_stored_on_request(one, tmp_path):
    stored: list[Dataset] = []
    with archive(stored) as address:
        code, messages = one.export(tmp_path / "a", "--send", address)
    assert code == 0 and f"sent to {address}" in messages
    written = {made.SOPInstanceUID: made for made in read_all(tmp_path / "a").values()}
    assert {made.SOPInstanceUID for made in stored} == set(written)
    for made in stored:
        assert made == written[made.SOPInstanceUID]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"without": LABELMAP}, "and refused findings.dcm, expected all to be stored"),
        ({"status": 0xA700}, "stored 0 of"),
    ],
)
def test_an_archive_that_refuses_is_told(objects, how, sentence):
    with archive([], **how) as address, pytest.raises(UserError) as told:
        send(sorted(objects.iterdir()), Archive.parse(address))
    assert sentence in str(told.value)


def test_an_archive_that_cannot_be_reached_is_told_and_the_files_stay(one, tmp_path):
    code, messages = one.export(tmp_path / "a", "--send", "PACS@127.0.0.1:9")
    assert code == 2 and "--send PACS@127.0.0.1:9: cannot be reached" in messages
    assert {"z-scores", "report"} <= set(read_all(tmp_path / "a"))
