"""The series of a study, from the headers of all DICOM files below a folder. File names mean nothing."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from ...data_manifests.errors import UserError, counted, private
from ...data_manifests.user_paths import reach
from .kinds import TAGS, kind_of, value_of
from .reading import UNREADABLE

_OF_FILES = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "NumberOfFrames",
)
_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a study.

    Attributes
    ----------
    uid, study_uid : str
    number : int or None
        As the archive shows it.
    description : str
        Free text, which may hold a name: for the terminal only.
    files : tuple of Path
    headers : tuple of Dataset
        Of the files, with a few tags only.
    """

    uid: str
    study_uid: str
    number: int | None
    description: str
    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]

    @cached_property
    def kind(self) -> str:
        """What most of its images show, as `kind_of` says."""
        # A whole series has the same tags, but for a localizer that was mixed in.
        return Counter(kind_of(header) for header in self.headers).most_common(1)[0][0]

    @property
    def images(self) -> int:
        """Number of images; each frame of a multi-frame file is one."""
        return sum(int(header.get("NumberOfFrames") or 1) for header in self.headers)

    @property
    def has_contrast_agent(self) -> bool:
        """Whether a contrast agent is named."""
        agent = value_of(self.headers[0], "ContrastBolusAgent")
        return bool(agent) and str(agent).strip().upper() not in {"NONE", "NO", "N"}

    @property
    def is_3d(self) -> bool:
        """Whether the images were acquired as one volume."""
        return value_of(self.headers[0], "MRAcquisitionType") == "3D"

    @property
    def label(self) -> str:
        """Name of the series in messages: its number, which identifies nobody."""
        return "a series without number" if self.number is None else f"series {self.number}"

    def __str__(self) -> str:
        described = f" ({private(self.description, 'its description')})" if self.description else ""
        agent = ", contrast agent" if self.has_contrast_agent else ""
        return f"{self.label}{described}: {self.kind}{agent}, {counted(self.images, 'image')}"


@dataclass(frozen=True, eq=False)
class Study:
    """All series below a folder, which show one person.

    Attributes
    ----------
    folder : Path
    series : tuple of Series
        By number.
    notes : tuple of str
        About files that were not used.
    """

    folder: Path
    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()


def read_study(folder: Path) -> Study:
    """Read the headers of all DICOM files below a folder.

    Raises
    ------
    UserError
        No such folder, no DICOM file in it, or images of several persons.
    """
    reach(folder, "a folder of DICOM files")
    if not folder.is_dir():
        raise UserError(f"{private(folder)}: is a file, expected the folder of a DICOM study. Give its folder.")
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    others = 0
    for path in _files(folder):
        header = _header(path)
        if header is None:
            others += 1
        else:
            found.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    if not found:
        raise UserError(
            f"{private(folder, 'the study')}: holds no DICOM image ({counted(others, 'other file')}), expected those "
            "of a study. Check the path, or export the study again."
        )
    _require_one_person(folder, [header for files in found.values() for _, header in files])
    notes: list[str] = [f"{counted(others, 'file')} of the study are no DICOM images, and were not used"] * (others > 0)
    series = []
    for uid, files in found.items():
        kept = _without_copies(files)
        if len(kept) < len(files):
            notes.append(f"{counted(len(files) - len(kept), 'file')} are copies of images of the study, and left out")
        series.append(_series(uid, kept))
    return Study(folder, tuple(sorted(series, key=lambda one: (one.number or 0, one.uid))), tuple(notes))


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _header(path: Path) -> Dataset | None:
    """Return some tags of a file; None if it is no DICOM image of a series."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*_OF_FILES, *TAGS])
        list(header)  # decodes all values, which fails if one is damaged
    except UNREADABLE:
        return None
    if header.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY or not header.get("SeriesInstanceUID"):
        return None
    return header


def _require_one_person(folder: Path, headers: Sequence[Dataset]) -> None:
    """Refuse images of several persons: what is mapped would go into the wrong record."""
    for tag in ("PatientID", "PatientBirthDate", "PatientName"):
        persons = {written for header in headers if (written := _letters(header.get(tag)))}
        if len(persons) > 1:
            raise UserError(
                f"{private(folder, 'the study')}: holds images of {len(persons)} persons (they differ in {tag}), "
                "expected the study of one. Give the folder of one study."
            )


def _letters(value: Any) -> str:
    """Return letters and digits, since a name is written with ^ or spaces, in capitals or not."""
    return "".join(letter for letter in str(value or "").casefold() if letter.isalnum())


def _without_copies(files: Sequence[tuple[Path, Dataset]]) -> list[tuple[Path, Dataset]]:
    """Leave out files with the same content as another; the same image with other content stays, and is refused."""
    kept: dict[tuple[str, bytes], tuple[Path, Dataset]] = {}
    times = Counter(str(header.get("SOPInstanceUID")) for _, header in files)
    for path, header in files:
        uid = str(header.get("SOPInstanceUID"))
        kept.setdefault((uid, path.read_bytes() if times[uid] > 1 else b""), (path, header))
    return list(kept.values())


def _series(uid: str, files: Sequence[tuple[Path, Dataset]]) -> Series:
    first = files[0][1]
    number = first.get("SeriesNumber")
    return Series(
        uid,
        str(first.get("StudyInstanceUID") or ""),
        None if number is None else int(number),
        str(first.get("SeriesDescription") or ""),
        tuple(path for path, _ in files),
        tuple(header for _, header in files),
    )
