"""A BIDS dataset as a manifest: scans from ``sub-*/[ses-*/]anat``, people from ``participants.tsv``, masks from
``derivatives``."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .cells import Cells, clean_label
from .errors import UserError, some_of
from .subject import Manifest, SubjectRecord
from .terms import BIDS_SUFFIX, GROUPS, MODALITIES, SPLITS, Group, Modality, Split

_NATIVE_SPACES = {"", "orig", "t1w", "native", "individual"}
_Person = tuple[str, str | None]  # subject and session label
_LESION_WORDS = ("lesion", "wmh")


@dataclass(frozen=True)
class _Name:
    """A file name taken apart, as BIDS builds it: ``sub-01_ses-2_run-1_T1w.nii.gz``."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> "_Name":
        *pairs, suffix = path.name.removesuffix(".gz").removesuffix(".nii").split("_")
        entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
        return cls(path, entities, suffix)

    @property
    def person(self) -> _Person:
        return self.entities.get("sub", ""), self.entities.get("ses")

    @property
    def is_lesion(self) -> bool:
        told = f"{self.entities.get('label', '')} {self.entities.get('desc', '')}".lower()
        return any(word in told for word in _LESION_WORDS)

    @property
    def drawn_on(self) -> Modality | None:
        """The image whose grid a mask lies on; None: another space."""
        space = self.entities.get("space", "").lower()
        return "t1w" if space in _NATIVE_SPACES else "flair" if space == "flair" else None

    @property
    def rank(self) -> tuple:
        """First come the plainest: without contrast agent, without reconstruction variants, lowest run number."""
        variants = [n for n in ("ce", "rec", "acq", "desc") if n in self.entities]
        run = self.entities.get("run", "0")
        return "ce" in self.entities, len(variants), int(run) if run.isdigit() else 0, self.path.name


def read_bids(folder: Path) -> Manifest:
    """Read a BIDS dataset.

    Scans: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``*_FLAIR``; of several, the plainest is used. People:
    ``participants.tsv`` (`group`, `age`, `sex`, `site`). Masks: ``*_desc-brain_mask`` and ``*_label-lesion_mask`` (or
    ``label-WMH``) under ``derivatives/*/sub-*`` or beside the scans, where they lie in the space of the T1w; lesions
    also where they were drawn on the FLAIR (``space-FLAIR``). Whoever has no group is a control, unless there is a
    lesion mask. Whatever is passed over is told in the manifest's notes.

    Parameters
    ----------
    folder : Path
        Root of the dataset.

    Returns
    -------
    Manifest
        Sorted by subject and session.

    Raises
    ------
    UserError
        No T1w anywhere; a ``participants.tsv`` that is unreadable or holds values that are not understood; labels
        with characters that BIDS forbids. All at once.
    """
    folder = folder.absolute()
    people, problems, notes = _participants(folder)
    scans = _scans(folder)
    if not any("t1w" in found for found in scans.values()):
        raise UserError([
            f"{folder}: no T1w found, expected a BIDS dataset with sub-*/anat/*_T1w.nii.gz. "
            "Name the root of the dataset, or list the scans in a CSV.",
            *problems,
        ])  # fmt: skip
    brains, lesions, elsewhere = _masks(folder)
    # One lesion mask, in any session or space, makes a patient of the whole person: no detector may learn from them.
    ill = {subject_id for subject_id, _ in lesions} | {n.person[0] for n in elsewhere if n.is_lesion}
    records, guessed, without_t1w, doubled = [], defaultdict(list), [], []
    for person in sorted(scans, key=lambda p: (p[0], p[1] or "")):
        subject_id, session_id = person
        labels = [label for label in (subject_id, session_id) if label is not None]
        if any(label != clean_label(label) for label in labels):
            clean = clean_label(subject_id)
            problems.append(
                f"sub-{subject_id}: its name holds characters that BIDS forbids, expected letters (A-Z) and digits. "
                f"Rename it, for instance to sub-{clean}."
            )
            continue
        key = "_".join([f"sub-{subject_id}"] + ([f"ses-{session_id}"] if session_id else []))
        found = {modality: sorted(names, key=lambda n: n.rank) for modality, names in scans[person].items()}
        if "t1w" not in found:
            without_t1w.append(key)
            continue
        drawn = [name for name in lesions.get(person, []) if name.drawn_on in found]
        elsewhere += [name for name in lesions.get(person, []) if name not in drawn]
        candidates = [*found.values(), brains.get(person, []), drawn]
        doubled += [f"{names[0].path.name} of {len(names)}" for names in candidates if len(names) > 1]
        row = people.get(subject_id, _Participant())
        group: Group = row.group or ("patient" if subject_id in ill else "control")
        if row.group is None:
            guessed[group].append(key)
        records.append(
            SubjectRecord(
                subject_id=subject_id,
                session_id=session_id,
                group=group,
                images={modality: found[modality][0].path for modality in MODALITIES if modality in found},
                brain_mask=brains[person][0].path if person in brains else None,
                lesion_mask=drawn[0].path if drawn else None,
                mask_of=(drawn[0].drawn_on if drawn else None) or "t1w",
                site=row.site,
                age=row.age,
                sex=row.sex,
                split=row.split if group == "control" else None,
            )
        )
    for group, keys in sorted(guessed.items()):
        why = "have a lesion mask" if group == "patient" else "have no lesion mask"
        notes.append(f"without a group in participants.tsv, taken as {group} because they {why}: {some_of(keys)}.")
    if elsewhere:
        notes.append(f"masks in no space of a scan are not used: {some_of(n.path.name for n in elsewhere)}.")
    if without_t1w:
        notes.append(f"left out, no T1w: {some_of(without_t1w)}.")
    if doubled:
        notes.append(f"of several files of one kind the first is used: {some_of(doubled)}.")
    scanless = sorted(set(people) - {subject_id for subject_id, _ in scans})
    if scanless:
        notes.append(f"in participants.tsv, but without scans: {some_of(f'sub-{s}' for s in scanless)}.")
    if problems:
        raise UserError(problems)
    return Manifest(tuple(records), tuple(notes))


# -- files -----------------------------------------------------------------------------------------------------------
def _scans(folder: Path) -> dict[_Person, dict[Modality, list[_Name]]]:
    """Everybody's scans; a person with a folder but no scan has an empty entry."""
    scans: dict[_Person, dict[Modality, list[_Name]]] = {}
    for anat in [*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")]:
        parts = [part.split("-", 1)[1] for part in anat.relative_to(folder).parts[:-1]]
        person = (parts[0], parts[1] if len(parts) > 1 else None)
        names = [_Name.of(path) for path in _images(anat.iterdir())]
        scans[person] = {m: found for m in MODALITIES if (found := [n for n in names if n.suffix == BIDS_SUFFIX[m]])}
    return scans


def _masks(folder: Path) -> tuple[dict[_Person, list[_Name]], dict[_Person, list[_Name]], list[_Name]]:
    """Brain masks and lesion masks by person, best first, and the masks in other spaces."""
    brains, lesions, elsewhere = defaultdict(list), defaultdict(list), []
    for path in _images([*folder.glob("derivatives/*/sub-*/**/*_mask.nii*"), *folder.glob("sub-*/**/*_mask.nii*")]):
        name = _Name.of(path)
        # A mask of a functional or diffusion run is called desc-brain_mask as well.
        if not (name.is_lesion or name.entities.get("desc") == "brain") or path.parent.name in ("func", "dwi", "perf"):
            continue
        if name.drawn_on is None or (name.drawn_on != "t1w" and not name.is_lesion):
            elsewhere.append(name)
            continue
        (lesions if name.is_lesion else brains)[name.person].append(name)
    for found in (*brains.values(), *lesions.values()):
        found.sort(key=lambda n: (n.drawn_on != "t1w", n.path.parents[1], n.rank))
    return dict(brains), dict(lesions), elsewhere


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith("."))


# -- people ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Participant:
    group: Group | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None
    split: Split | None = None


def _participants(folder: Path) -> tuple[dict[str, _Participant], list[str], list[str]]:
    """People by subject label, problems, notes."""
    path = folder / "participants.tsv"
    if not path.exists():
        return {}, [], ["participants.tsv is missing: ages, sexes and sites are unknown."]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", restkey="?", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable, expected a table as UTF-8 with tabs. Save it again.") from error
    if rows and "participant_id" not in rows[0]:
        raise UserError(f"{path}: column participant_id is missing, expected tab-separated columns. Add it.")
    people, problems = {}, []
    for number, cells in enumerate(rows, start=2):
        row = Cells(
            {(name or "").lower(): cell or "" for name, cell in cells.items()}, f"participants.tsv row {number}"
        )
        subject_id = (row.text("participant_id") or "").removeprefix("sub-")
        if subject_id in people:
            row.problem(f"sub-{subject_id} stands there twice. Delete one.")
        people[subject_id] = _Participant(
            group=row.word("group", GROUPS),
            age=row.age(),
            sex=row.text("sex"),
            site=row.text("site"),
            split=row.word("split", SPLITS),
        )
        problems += row.problems
    return people, problems, []
