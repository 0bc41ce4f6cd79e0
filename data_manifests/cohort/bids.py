"""A BIDS dataset as a manifest: scans from ``sub-*/[ses-*/]anat``, people from ``participants.tsv``, masks from
``derivatives``."""

import os
from collections import defaultdict
from pathlib import Path

from ..errors import UserError, private, some_of
from ..terms import BIDS_SUFFIX, MODALITIES, Group, Modality
from .bids_groups import judge_groups
from .bids_masks import find_masks
from .bids_names import BidsName, Person
from .bids_participants import TABLE, Participant, read_participants
from .subject import Manifest, SubjectRecord
from .table_cells import clean_label, quoted

_Scans = dict[Modality, list[BidsName]]


def read_bids(folder: Path) -> Manifest:
    """Read a BIDS dataset.

    Scans: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``*_FLAIR``; of several, the plainest is used. People:
    ``participants.tsv`` (`group`, `age`, `sex`, `site`). Masks: ``*_desc-brain_mask`` and ``*_label-lesion_mask`` (or
    ``label-WMH``, ``_roi``, ``_dseg``) anywhere under ``derivatives`` or beside the scans, behind links too, where
    they lie in the space of the T1w; lesions also where they were drawn on the FLAIR (``space-FLAIR``). A mask
    without a session is that of the only session. What voxout itself wrote is not searched.

    Without a group, people with a lesion mask are patients. The others are controls only where nothing speaks of
    patients: no row of the table that has lost its folder, no column such as `diagnosis`, no file that is called a
    lesion and cannot be used, no folder that cannot be searched. Whatever is passed over is told in the manifest's
    notes; scans that cannot be reached stay in it and fail when they are read.

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
        with characters that BIDS forbids; people whose group is unknown although something speaks of patients. All
        at once.
    """
    folder = folder.absolute()
    scans, unreached = _find_scans(folder)
    table = read_participants(folder)
    problems = list(table.problems)
    if not any("t1w" in found for found in scans.values()):
        raise UserError([
            f"{private(folder)}: no T1w found, expected a BIDS dataset with sub-*/anat/*_T1w.nii.gz. Name the root "
            "of the dataset, or list the scans in a CSV.",
            *problems,
        ])  # fmt: skip
    masks = find_masks(folder, [participant for participant, found in scans.items() if found])
    notes = [] if table.exists else [f"{TABLE} is missing: ages, sexes and sites are unknown."]
    elsewhere = list(masks.elsewhere)
    records, guessed, without_t1w, doubled = [], defaultdict(list), [], []
    for participant in sorted(scans, key=lambda p: (p[0], p[1] or "")):
        subject_id, session_id = participant
        labels = [label for label in (subject_id, session_id) if label is not None]
        if any(label != clean_label(label) for label in labels):
            clean = clean_label(subject_id)
            problems.append(
                f"sub-{private(subject_id)}: its name holds characters that BIDS forbids, expected letters (A-Z) and "
                f"digits. Rename it, for instance to sub-{clean}."
            )
            continue
        key = "_".join([f"sub-{subject_id}"] + ([f"ses-{session_id}"] if session_id else []))
        found = {modality: sorted(names, key=lambda n: n.rank) for modality, names in scans[participant].items()}
        if "t1w" not in found:
            without_t1w.append(key)
            continue
        brains = masks.brains.get(participant, [])
        drawn = [name for name in masks.lesions.get(participant, []) if name.drawn_on in found]
        elsewhere += [name for name in masks.lesions.get(participant, []) if name not in drawn]
        candidates = [*found.values(), brains, drawn]
        doubled += [f"{private(names[0].path.name)} of {len(names)}" for names in candidates if len(names) > 1]
        row = table.participants.get(subject_id, Participant())
        group: Group = row.group or ("patient" if subject_id in masks.ill else "control")
        if row.group is None:
            guessed[group].append(key)
        records.append(
            SubjectRecord(
                subject_id=subject_id,
                session_id=session_id,
                group=group,
                images={modality: found[modality][0].path for modality in MODALITIES if modality in found},
                brain_mask=brains[0].path if brains else None,
                lesion_mask=drawn[0].path if drawn else None,
                mask_of=(drawn[0].drawn_on if drawn else None) or "t1w",
                site=row.site,
                age=row.age,
                sex=row.sex,
                split=row.split if group == "control" else None,
            )
        )
    scanless = sorted(set(table.participants) - {subject_id for subject_id, _ in scans})
    scanned = list(dict.fromkeys(record.subject_id for record in records))
    problems += judge_groups(
        folder,
        table,
        masks,
        scanned=scanned,
        scanless=scanless,
        unreached=[participant[0] for participant in unreached],
    )
    for group, keys in sorted(guessed.items()):
        why = "have a lesion mask" if group == "patient" else "have no lesion mask"
        notes.append(f"without a group in participants.tsv, taken as {group} because they {why}: {some_of(keys)}.")
    if elsewhere:
        notes.append(f"masks in no space of a scan are not used: {some_of(private(n.path.name) for n in elsewhere)}.")
    if masks.homeless:
        notes.append(
            f"masks that are of no one scan are not used: {some_of(private(n.path.name) for n in masks.homeless)}."
        )
    if masks.hints:
        names = some_of(private(n.path.name) for n in masks.hints)
        notes.append(f"speak of lesions and are not used, being no masks called label-lesion: {names}.")
    if unreached:
        notes.append(f"cannot be reached: {some_of(f'{_key(p)} ({why})' for p, why in unreached.items())}.")
    if without_t1w:
        notes.append(f"left out, no T1w: {some_of(without_t1w)}.")
    if doubled:
        notes.append(f"of several files of one kind the first is used: {some_of(doubled)}.")
    if scanless:
        notes.append(f"in {TABLE}, but without scans: {some_of(f'sub-{quoted(s)}' for s in scanless)}.")
    if problems:
        raise UserError(problems)
    return Manifest(tuple(records), tuple(notes))


def _key(participant: Person) -> str:
    return f"sub-{participant[0]}" + (f"_ses-{participant[1]}" if participant[1] else "")


# -- scans -----------------------------------------------------------------------------------------------------------
def _find_scans(folder: Path) -> tuple[dict[Person, _Scans], dict[Person, str]]:
    """Scans of every person with a folder, and whose folder cannot be read, and why.

    Where a folder cannot be read, a T1w of the usual name stands for what it holds: reading it will fail, for that
    person alone.
    """
    scans: dict[Person, _Scans] = {}
    unreached: dict[Person, str] = {}

    def names_in(place: Path, participant: Person) -> list[str]:
        try:
            return sorted(os.listdir(place))
        except NotADirectoryError:
            return []
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            unreached[participant] = "a link that leads nowhere" if missing else error.strerror or "not readable"
            anat = place if place.name == "anat" else place / "anat"
            scans[participant] = {
                "t1w": [BidsName.from_path(anat / f"{_key(participant)}_{BIDS_SUFFIX['t1w']}.nii.gz")]
            }
            return []

    def read_anat(place: Path, participant: Person) -> None:
        names = names_in(place, participant)
        found = [
            BidsName.from_path(place / n) for n in names if n.endswith((".nii", ".nii.gz")) and not n.startswith(".")
        ]
        scans.setdefault(
            participant, {m: of for m in MODALITIES if (of := [n for n in found if n.suffix == BIDS_SUFFIX[m]])}
        )

    try:
        roots = [name for name in sorted(os.listdir(folder)) if name.startswith("sub-")]
    except OSError as error:
        raise UserError(f"{private(folder)}: cannot be read ({error.strerror}). Check who may read it.") from error
    for root in roots:
        if os.path.isfile(folder / root):
            continue
        label = root.removeprefix("sub-")
        names = names_in(folder / root, (label, None))
        if "anat" in names:
            read_anat(folder / root / "anat", (label, None))
        sessions = [n for n in names if n.startswith("ses-") and not os.path.isfile(folder / root / n)]
        for session in sessions:
            participant = (label, session.removeprefix("ses-"))
            if "anat" in names_in(folder / root / session, participant):
                read_anat(folder / root / session / "anat", participant)
            scans.setdefault(participant, {})
        if not sessions:
            scans.setdefault((label, None), {})
    return scans, unreached
