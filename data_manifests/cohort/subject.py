"""One scanning session of one person, as the manifest lists it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import printable, without_names
from ..terms import Group, Modality, Split

_IMAGE_NAME = re.compile(r"[^\s,;:()\"']*\w\.(?:nii(?:\.gz)?|mg[zh](?:\.gz)?|hdr|img|dcm|h5|mat|tfm)\b")


def participant_of_key(key: str) -> str:
    """Whose scan it is: sessions of one person have it in common."""
    return key.partition("_ses-")[0]


@dataclass(frozen=True)
class SubjectRecord:
    """One row of a manifest.

    Attributes
    ----------
    subject_id : str
        Without the ``sub-`` prefix; letters and digits only, as BIDS asks.
    group : {"control", "patient"}
    images : mapping from modality to path
        Always holds ``"t1w"``. Paths are absolute.
    session_id : str or None
        Without the ``ses-`` prefix.
    brain_mask, lesion_mask : Path or None
        On the grid of the T1w; the lesion mask on that of the image it was drawn on.
    mask_of : Modality
        That image.
    template_transform : Path or None
        An ITK transform that brings the T1w to the template, where the user has one.
    site, sex : str or None
    age : float or None
        Years.
    split : {"train", "held_out"} or None
        For controls: None leaves the choice to the configured split.
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
        """The BIDS name that all outputs and messages use: ``sub-01`` or ``sub-01_ses-2``."""
        return f"sub-{self.subject_id}" + (f"_ses-{self.session_id}" if self.session_id else "")

    @property
    def files(self) -> Mapping[str, Path]:
        """Every input file by its manifest column."""
        named: dict[str, Path] = {modality: path for modality, path in self.images.items()}
        others = ("brain_mask", self.brain_mask), ("lesion_mask", self.lesion_mask)
        others = *others, ("template_transform", self.template_transform)
        return named | {column: path for column, path in others if path}


@dataclass(frozen=True)
class Manifest:
    """All subjects of a cohort, in a fixed order, with unique keys."""

    records: tuple[SubjectRecord, ...]
    notes: tuple[str, ...] = field(default=())
    """What was passed over while reading, and why; for the user's eyes."""

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
        """A sentence as it may be kept on disk: a name of a file or folder may be a person's.

        What `private` marked gives way to its column of the subject that the sentence begins with (or of the cohort,
        where all agree). Names that stand in a sentence without marks are looked for as well: those of the manifest,
        the longest first and whole, and all that look like an image.
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
        # The root and its folders are nobody's: /data, /home.
        folders = {folder for path in paths for folder in path.parents if len(folder.parts) > 2}
        names = {str(path) for path in paths | folders} | {path.name for path in paths}
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        if not longest_first:
            return None
        return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-]|\.\w)")

    @property
    def controls(self) -> tuple[SubjectRecord, ...]:
        return tuple(r for r in self.records if r.group == "control")

    @property
    def patients(self) -> tuple[SubjectRecord, ...]:
        return tuple(r for r in self.records if r.group == "patient")


def _roles(records: Iterable[SubjectRecord]) -> dict[str, str]:
    """What stands in the place of each name and path; of several columns, none."""
    roles: dict[str, str] = {}
    for record in records:
        for column, path in record.files.items():
            for name in (printable(str(path)), printable(path.name)):
                role = f"its {column}"
                roles[name] = role if roles.setdefault(name, role) == role else "the file"
    return roles
