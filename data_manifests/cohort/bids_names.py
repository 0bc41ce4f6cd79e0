"""Parsing of BIDS file names: participant, session, mask type and space."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..terms import BIDS_SUFFIX, Modality

SessionId = tuple[str, str | None]
"""Subject label and session label (None without sessions)."""


def key_of(session: SessionId) -> str:
    """Return the BIDS name of a session: ``sub-01`` or ``sub-01_ses-2``."""
    return f"sub-{session[0]}" + (f"_ses-{session[1]}" if session[1] else "")


NATIVE_SPACES = {"", "orig", "t1w", "native", "individual"}
MASK_SUFFIXES = ("mask", "roi", "dseg")
_LESION = re.compile(
    r"lesion|wmh|tumou?r|infarct|stroke|hyperintens|hypointens|glioma|metasta|ha?ematoma|oedema|edema|resection|cavit"
    r"|gtv|fcd|abnormal",
    re.IGNORECASE,
)
_ONLY_HINTS = re.compile(
    r"bleed|h(a?e)?morrhag|plaque|wml|wmsa|sclero|epilep|gliosis|dysplas|heterotop|cavernom|angioma|malform|cyst|necro"
    r"|contusion|abscess|aneurysm|penumbra|patholog|injur|scar|disease",
    re.IGNORECASE,
)
_ANATOMY = re.compile(
    r"brain|head|skull|scalp|face|tissue|matter|csf|gm|wm|gr[ae]y|white|cort|ribbon|seg$|aparc|parc|atlas|cerebell|thalam"
    r"|hippocamp|amygdal|putamen|caudate|pallid|accumbens|striat|ventric|icv|tiv|intracran|bone|eye|fov|air|backgr"
    r"|pial|spin|cord|hemi|stem|basal|fast|bet|synth|pve",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"\.(nii|mgz|mgh|img|mha|mhd|nrrd|mif)(\.gz)?$", re.IGNORECASE)
_DRAWN = ("seg", "segmentation", "label", "labels")
_SCANS = (*BIDS_SUFFIX.values(), "T2w", "PDw")
_PLACE = re.compile("(sub|ses)-.")
_UNRELATED_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "run", "space", "res", "from", "to")


@dataclass(frozen=True)
class BidsName:
    """Parsed BIDS file name, such as ``sub-01_ses-2_run-1_T1w.nii.gz``.

    Attributes
    ----------
    path : Path
    entities : mapping from entity to label
    suffix : str
    words : tuple of str
        Other parts between underscores.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    words: tuple[str, ...]

    @classmethod
    def from_path(cls, path: Path) -> "BidsName":
        """Split the name of a file into its BIDS parts."""
        *parts, suffix = _IMAGE.sub("", path.name).split("_")
        entities = dict(part.split("-", 1) for part in parts if "-" in part)
        return cls(path, entities, suffix, tuple(part for part in parts if "-" not in part))

    @property
    def participant(self) -> SessionId:
        """Subject and session from the file name or, if missing there, from the folders."""
        folders = dict(part.split("-", 1) for part in self.path.parts[:-1] if part.startswith(("sub-", "ses-")))
        return self.entities.get("sub") or folders.get("sub", ""), self.entities.get("ses") or folders.get("ses")

    @property
    def is_lesion(self) -> bool:
        """Whether this is a lesion mask: by its label or description, or a region drawn on a scan (``FLAIR_roi``).

        ``label-L`` is the BIDS abbreviation.
        """
        label = self.entities.get("label", "")
        about = f"{label} {self.entities.get('desc', '')}"
        on_a_scan = self.suffix == "roi" and not about.strip() and self.words[-1:] and self.words[-1] in _SCANS
        return self.suffix in MASK_SUFFIXES and bool(_LESION.search(about) or label == "L" or on_a_scan)

    @property
    def is_brain(self) -> bool:
        """Whether the name is that of a brain mask, ``..._desc-brain_mask``."""
        return self.suffix == "mask" and self.entities.get("desc") == "brain"

    @property
    def mentions_lesion(self) -> bool:
        """Whether any part of the name suggests a lesion, for masks and other images."""
        labels = [label for entity, label in self.entities.items() if entity not in _UNRELATED_ENTITIES]
        name = " ".join([*labels, *self.words, self.suffix])
        return self.is_lesion or any(pattern.search(name) for pattern in (_LESION, _ONLY_HINTS))

    @property
    def is_unknown_mask(self) -> bool:
        """Whether this is a mask of something other than the brain's anatomy: it may be one of a lesion."""
        labels = [self.entities.get("label", "")]
        if self.suffix in (*_DRAWN, "mask", "roi"):
            labels += [self.entities.get("desc", ""), *(word for word in self.words if word not in _SCANS)]
        elif self.suffix not in ("dseg", "probseg"):
            return False
        return _ANATOMY.search(" ".join(labels)) is None and (any(labels) or self.suffix in _DRAWN)

    def is_misplaced(self, root: Path) -> bool:
        """Whether the name gives another subject or session than the folders below the root that the file lies in."""
        given = dict(part.split("-", 1) for part in self.path.relative_to(root).parts[:-1] if _PLACE.match(part))
        return any(self.entities.get(entity, label) != label for entity, label in given.items())

    def in_lesion_folder(self, root: Path) -> bool:
        """Whether this is a mask other than a brain mask in a folder whose name suggests lesions."""
        folders = [part for part in self.path.relative_to(root).parts[:-1] if not part.startswith(("sub-", "ses-"))]
        is_mask = self.suffix in (*MASK_SUFFIXES, "seg", "label", "probseg") or not self.entities
        return is_mask and not self.is_brain and _LESION.search(" ".join(folders)) is not None

    @property
    def drawn_on(self) -> Modality | None:
        """Image whose grid the mask has, or None for another space."""
        named = [word.lower() for word in self.words if word in _SCANS]
        space = self.entities.get("space", named[0] if named else "").lower()
        return "t1w" if space in NATIVE_SPACES else "flair" if space == "flair" else None

    @property
    def rank(self) -> tuple:
        """Sort key of several files: without contrast agent first, then fewest variant entities, then lowest run."""
        variants = [n for n in ("ce", "rec", "acq", "desc") if n in self.entities]
        run = self.entities.get("run", "0")
        return "ce" in self.entities, len(variants), int(run) if run.isdecimal() else 0, self.path.name


def is_image(path: Path) -> bool:
    """Whether the file is not hidden and has the suffix of an image format, such as NIfTI, MGH or MetaImage."""
    return _IMAGE.search(path.name) is not None and not path.name.startswith(".")


def likely_matches(label: str, among: Iterable[str]) -> list[str]:
    """Return labels that probably mean the same subject but differ in zeros, case, a prefix or ``.0``."""
    wanted, among = _normalised(label), list(among)
    exact = [other for other in among if _normalised(other) == wanted]
    if exact or not wanted:
        return exact
    number = re.search(r"\d+$", wanted)
    tail = number[0] if number else wanted
    return [
        other
        for other in among
        if (name := _normalised(other)) and (_ends(name, wanted) or _ends(wanted, name)) and _ends(name, tail)
    ]


def _ends(longer: str, end: str) -> bool:
    """Whether a name is a prefix followed by `end`, without splitting a number."""
    before = longer[: -len(end)]
    return longer.endswith(end) and not (end[0].isdigit() and before[-1:].isdigit())


def _normalised(label: str) -> str:
    label = re.sub(r"\.0+$", "", label.lower().removeprefix("sub-")).partition("_ses-")[0]
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[^a-z0-9]", "", label))
