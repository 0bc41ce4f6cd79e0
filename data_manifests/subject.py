"""One scanning session of one person, as the manifest lists it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .terms import Group, Modality, Split


def person_of_key(key: str) -> str:
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
        """A sentence with the names of this cohort's files replaced by their columns: a name may be a person's."""
        for record in self.records:
            for column, path in record.files.items():
                text = text.replace(str(path), f"its {column}").replace(path.name, f"its {column}")
        return text

    @property
    def controls(self) -> tuple[SubjectRecord, ...]:
        return tuple(r for r in self.records if r.group == "control")

    @property
    def patients(self) -> tuple[SubjectRecord, ...]:
        return tuple(r for r in self.records if r.group == "patient")
