"""Broken series: each is refused, or warned of, with a sentence; none is converted in silence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1, generate_uid

from .made_series import NAME, classic, enhanced, in_plane, save
from .test_receive import SCAN, dicom_in

Break = Callable[[list[Dataset]], list[Dataset]]


def _doubled(slices: list[Dataset]) -> list[Dataset]:
    again = classic(in_plane(SCAN, "axial"))[7]
    again.SeriesInstanceUID, again.FrameOfReferenceUID = slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID
    again.StudyInstanceUID = slices[0].StudyInstanceUID
    return [*slices, again]


def _uneven(slices: list[Dataset]) -> list[Dataset]:
    for dataset in slices[20:]:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 1.9]
    return slices


def _tilted(slices: list[Dataset]) -> list[Dataset]:
    for number, dataset in enumerate(slices):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, float(y) + 0.7 * number, z]
    return slices


def _with_localizer(slices: list[Dataset]) -> list[Dataset]:
    others = classic(in_plane(SCAN, "sagittal"), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[:3]
    for dataset in others:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = slices[0].SeriesInstanceUID, slices[0].StudyInstanceUID
    return [*others, *slices]


def _two_echoes(slices: list[Dataset]) -> list[Dataset]:
    others = classic(in_plane(SCAN, "axial"), EchoTime=5.1)
    for dataset in others:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = slices[0].SeriesInstanceUID, slices[0].StudyInstanceUID
        dataset.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    return [*slices, *others]


def _other_size(slices: list[Dataset]) -> list[Dataset]:
    slices[4].PixelSpacing = [2.0, 2.0]
    return slices


def _without_position(slices: list[Dataset]) -> list[Dataset]:
    del slices[4].ImagePositionPatient
    return slices


def _truncated(slices: list[Dataset]) -> list[Dataset]:
    slices[9].PixelData = slices[9].PixelData[:1000]
    return slices


def _colour(slices: list[Dataset]) -> list[Dataset]:
    for dataset in slices:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = dataset.PixelData[: dataset.Rows * dataset.Columns] * 3
    return slices


def _two_frames_of_reference(slices: list[Dataset]) -> list[Dataset]:
    for dataset in slices[18:]:
        dataset.FrameOfReferenceUID = str(generate_uid(None))
    return slices


BROKEN: dict[str, tuple[Break, str]] = {
    "a slice missing": (lambda s: s[:12] + s[13:], "lacks 1 slice within it"),
    "several slices missing": (lambda s: s[:8] + s[11:20] + s[21:], "lacks 4 slices within it"),
    "a slice doubled": (_doubled, "1 slice of it occur twice"),
    "uneven spacing": (_uneven, "its slices are unevenly spaced (5.5 to 7.4 mm)"),
    "gantry tilt": (_tilted, "stacked at an angle of 7.3 degrees (gantry tilt)"),
    "a localizer mixed in": (_with_localizer, "3 of its 39 images have another orientation"),
    "several echoes": (_two_echoes, "has 2 images of each of 36 slices"),
    "another pixel spacing": (_other_size, "1 of its 36 images have another size or pixel spacing"),
    "no position": (_without_position, "have no position or orientation"),
    "a truncated image": (_truncated, "is truncated or has no pixels"),
    "few slices": (lambda s: s[:9], "has 9 slices, expected a whole head in at least 16"),
    "colour": (_colour, "holds colour images"),
    "two frames of reference": (_two_frames_of_reference, "Images do not share a frame of reference"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_series_is_refused_in_a_sentence(tmp_path, kind):
    breaks, sentence = BROKEN[kind]
    study = save(breaks(classic(in_plane(SCAN, "axial"))), tmp_path / "study")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 2 and sentence in messages and messages.startswith("voxout: series 3: ")
    assert messages.count("\n") == 1 and not list(tmp_path.glob("out/**/*.nii.gz"))


def _frames(dataset: Dataset, chosen: list[int]) -> list[Dataset]:
    frames = dataset.PerFrameFunctionalGroupsSequence
    pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(-1, dataset.Rows, dataset.Columns)
    dataset.PerFrameFunctionalGroupsSequence = [frames[index] for index in chosen]
    dataset.NumberOfFrames, dataset.PixelData = len(chosen), pixels[chosen].tobytes()
    return [dataset]


BROKEN_FRAMES: dict[str, tuple[Break, str]] = {
    "a frame missing": (lambda s: _frames(s[0], [*range(12), *range(13, 36)]), "lacks 1 slice within it"),
    "a frame doubled": (lambda s: _frames(s[0], [*range(36), 7]), "1 slice of it occur twice"),
    "two files": (lambda s: [*s, _renewed(enhanced(in_plane(SCAN, "axial")), s[0])], "2 are multi-frame"),
}


def _renewed(made: list[Dataset], like: Dataset) -> Dataset:
    made[0].SeriesInstanceUID, made[0].StudyInstanceUID = like.SeriesInstanceUID, like.StudyInstanceUID
    return made[0]


@pytest.mark.parametrize("kind", BROKEN_FRAMES)
def test_a_broken_multi_frame_image_is_refused_in_a_sentence(tmp_path, kind):
    breaks, sentence = BROKEN_FRAMES[kind]
    study = save(breaks(enhanced(in_plane(SCAN, "axial"))), tmp_path / "study")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 2 and sentence in messages and messages.count("\n") == 1


def test_a_damaged_file_is_refused(tmp_path):
    study = save(classic(in_plane(SCAN, "axial")), tmp_path / "study")
    path = study / "IM0004"
    path.write_bytes(path.read_bytes()[:-2000])
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 2 and ("is truncated" in messages or "is damaged" in messages)


@pytest.mark.parametrize(
    ("breaks", "warning"),
    [
        (lambda s: s[:-3], "has 33 of the 36 images that its tags name (ImagesInAcquisition)"),
        (lambda s: s[3:], "has 33 of the 36 images that its tags name (ImagesInAcquisition)"),
    ],
)
def test_lost_slices_at_an_end_are_warned_of(tmp_path, breaks, warning):
    study = save(breaks(classic(in_plane(SCAN, "axial"), ImagesInAcquisition=36)), tmp_path / "study")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 0 and f"warning: series 3: {warning}" in messages


def test_lost_slices_are_warned_of_by_their_numbers_and_by_a_small_field_of_view(tmp_path):
    study = save(classic(in_plane(SCAN, "axial"))[14:], tmp_path / "study")
    messages = dicom_in(study, tmp_path / "out")[1]
    assert "its first image has the number 15" in messages
    assert "covers 121 mm in one direction, less than the head of an adult" in messages


def test_copies_of_images_are_left_out(tmp_path):
    slices = classic(in_plane(SCAN, "axial"))
    study = save(slices, tmp_path / "study" / "one").parent
    save(slices[:5], study / "copies")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 0 and "5 files are copies of images of the study" in messages


def test_an_unbroken_series_has_no_warning(tmp_path):
    study = save(classic(in_plane(SCAN, "axial"), ImagesInAcquisition=36), tmp_path / "study")
    code, messages = dicom_in(study, tmp_path / "out")
    assert code == 0 and "warning" not in messages and "note" not in messages


def test_pixels_that_cannot_be_decompressed_say_so(tmp_path: Path):
    slices = classic(in_plane(SCAN, "axial"))
    for dataset in slices:
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = encapsulate([b"\xff\xd8no picture"])
        dataset["PixelData"].is_undefined_length = True
    code, messages = dicom_in(save(slices, tmp_path / "study"), tmp_path / "out")
    assert code == 2 and "cannot be decompressed (JPEG Lossless" in messages and messages.count("\n") == 1


def test_odd_values_of_tags_are_not_printed(tmp_path, caplog):
    slices = classic(in_plane(SCAN, "axial"))
    with disable_value_validation():
        for dataset in slices:
            dataset.StudyID = f"{NAME} with more than sixteen letters"
            dataset.PatientBirthDate = NAME
        study = save(slices, tmp_path / "study")
    caplog.clear()
    code, messages = dicom_in(study, tmp_path / "out", "--quiet")
    assert code == 0 and NAME not in messages and NAME not in caplog.text
