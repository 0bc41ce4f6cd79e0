"""Records of the manifest: scanning sessions and the cohort."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import printable, without_names
from ..terms import Group, Modality, Split

_IMAGE_NAME = re.compile(r"[^\s,;:()\"']*\w\.(?:nii(?:\.gz)?|mg[zh](?:\.gz)?|hdr|img|dcm|h5|mat|tfm)\b")


MIRRORED = "_mirrored"
"""End of the key of a control's left-right mirrored copy."""


def original_key(key: str) -> str:
    """Return the key of the scan that a key belongs to: itself, or that without `MIRRORED`."""
    return key.removesuffix(MIRRORED)


def participant_of_key(key: str) -> str:
    """Return the participant of a key; sessions of one participant have the same, and so have mirrored copies."""
    return original_key(key).partition("_ses-")[0]


def count_participants(keys: Iterable[str]) -> int:
    """Return the number of participants with these keys; several sessions of one count once."""
    return len({participant_of_key(key) for key in keys})


def parts_of_key(key: str) -> tuple[str, str | None]:
    """Return the subject id and the session id of a key; its prefix ``sub-`` is optional."""
    subject, _, session = key.removeprefix("sub-").partition("_ses-")
    return subject, session or None


@dataclass(frozen=True)
class SubjectRecord:
    """Scanning session of a participant: one row of a manifest.

    Attributes
    ----------
    subject_id : str
        Without the ``sub-`` prefix; letters and digits only, as in BIDS.
    group : {"control", "patient"}
    images : mapping from modality to path
        Always contains ``"t1w"``. Paths are absolute.
    session_id : str or None
        Without the ``ses-`` prefix.
    brain_mask, lesion_mask : Path or None
        Brain mask on the grid of the T1w; lesion mask on the grid of the image `mask_of`.
    mask_of : Modality
        Image that the lesion mask was drawn on.
    template_transform : Path or None
        ITK transform from the T1w to the template, if provided by the user.
    site : str or None
    sex : {"F", "M", "O"} or None
    age : float or None
        Years.
    split : {"train", "held_out"} or None
        For controls; None: assigned by `split_controls`.
    """

    subject_id: str
    group: Group
    images: Mapping[Modality, Path]
    session_id: str | None = None
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    mask_of: Modality = "t1w"
    template_transform: Path | None = None
    site: str | None = None
    age: float | None = None
    sex: str | None = None
    split: Split | None = None

    @property
    def key(self) -> str:
        """BIDS name used in outputs and messages: ``sub-01`` or ``sub-01_ses-2``."""
        return f"sub-{self.subject_id}" + (f"_ses-{self.session_id}" if self.session_id else "")

    @property
    def files(self) -> Mapping[str, Path]:
        """Input files by manifest column."""
        named: dict[str, Path] = {modality: path for modality, path in self.images.items()}
        others = ("brain_mask", self.brain_mask), ("lesion_mask", self.lesion_mask)
        others = *others, ("template_transform", self.template_transform)
        return named | {column: path for column, path in others if path}


def differing_in_case(records: Iterable[SubjectRecord]) -> Iterator[tuple[int, str, int, str]]:
    """Yield names of participants or sessions that differ only in case, which file systems that ignore it mix up.

    Yields
    ------
    later, name, first, other : int, str, int, str
        Positions of the two records, and their names; one pair per record at most.
    """
    spellings: dict[str, tuple[int, str]] = {}
    for number, record in enumerate(records):
        for name in (f"sub-{record.subject_id}", record.key):
            first, other = spellings.setdefault(name.lower(), (number, name))
            if other != name:
                yield number, name, first, other
                break


@dataclass(frozen=True)
class Manifest:
    """All subjects of a cohort, in fixed order and with unique keys."""

    records: tuple[SubjectRecord, ...]
    notes: tuple[str, ...] = field(default=())
    """Messages about unused files and columns, for the terminal (may contain file names)."""

    def __repr__(self) -> str:
        return f"Manifest(controls={len(self.controls)}, patients={len(self.patients)})"

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self):
        return iter(self.records)

    def __getitem__(self, key: str) -> SubjectRecord:
        for record in self.records:
            if record.key == key:
                return record
        raise KeyError(key)

    def anonymous(self, text: str) -> str:
        """Return a message for storage on disk, without file and folder names, which may contain participants' names.

        Names marked with `private` are replaced by their column for the subject that the message starts with (or by
        their column in the cohort, if unique). Unmarked names are replaced as well: all paths and names in the
        manifest (complete names, longest first) and everything that looks like the name of an image.
        """
        key, _, _ = text.partition(":")
        own = [record for record in self.records if record.key == key]
        text = without_names(text, {**self._roles, **_roles(own)})
        if self._unmarked is not None:
            text = self._unmarked.sub("the file", text)
        return _IMAGE_NAME.sub("the file", text)

    @cached_property
    def _roles(self) -> dict[str, str]:
        return _roles(self.records)

    @cached_property
    def _unmarked(self) -> re.Pattern[str] | None:
        paths = {path for record in self.records for path in record.files.values()}
        # The root and its direct subfolders (/data, /home) contain no names of participants.
        folders = {folder for path in paths for folder in path.parents if len(folder.parts) > 2}
        names = {str(path) for path in paths | folders} | {path.name for path in paths}
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        if not longest_first:
            return None
        return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-]|\.\w)")

    @property
    def controls(self) -> tuple[SubjectRecord, ...]:
        """Healthy subjects, in the order of the manifest."""
        return tuple(r for r in self.records if r.group == "control")

    @property
    def patients(self) -> tuple[SubjectRecord, ...]:
        """Patients, in the order of the manifest."""
        return tuple(r for r in self.records if r.group == "patient")


def _roles(records: Iterable[SubjectRecord]) -> dict[str, str]:
    """Return the replacement of each name and path: its column, or "the file" if it occurs in several columns."""
    roles: dict[str, str] = {}
    for record in records:
        for column, path in record.files.items():
            for name in (printable(str(path)), printable(path.name)):
                role = f"its {column}"
                roles[name] = role if roles.setdefault(name, role) == role else "the file"
    return roles
