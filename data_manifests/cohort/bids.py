"""Reading of a BIDS dataset as a manifest.

Scans are read from ``sub-*/[ses-*/]anat``, participants from ``participants.tsv`` and masks from ``derivatives``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, private, some_of
from ..terms import MODALITIES, Group
from .bids_groups import check_groups
from .bids_masks import Masks, find_masks
from .bids_names import BidsName, SessionId, key_of
from .bids_participants import TABLE, Participant, Participants, read_participants
from .bids_scans import ScansOf, find_scans
from .bids_selection import BidsSelection
from .subject import Manifest, SubjectRecord, differing_in_case
from .table_cells import clean_label, quoted

_EVERYTHING = BidsSelection()
_MISPLACED = "files not used because their names give another subject or session than their folders"


def read_bids(folder: Path, selection: BidsSelection = _EVERYTHING) -> Manifest:
    """Read a BIDS dataset.

    Scans are ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``*_FLAIR``; if there are several, the one with the fewest
    variant entities is used (`BidsName.rank`). Participants are read from ``participants.tsv`` (`group`, `age`, `sex`,
    `site`). Masks are ``*_desc-brain_mask`` and ``*_label-lesion_mask`` (or ``label-WMH``, ``_roi``, ``_dseg``)
    anywhere under ``derivatives``, in the folders of the scans or in the derivative datasets of the selection,
    including linked folders. Masks must be in the space
    of the T1w; lesion masks may also be in the space of the FLAIR (``space-FLAIR``). A mask without a session belongs
    to the only session. Files whose names give another subject or session than their folders are not used. Output
    folders of voxout are not searched.

    Participants without a group are patients if they have a lesion mask. Otherwise they are controls, unless the
    dataset contains signs of further patients: a row of the table without a folder, a column such as `diagnosis` in
    ``participants.tsv``, in ``phenotype`` or in a table of sessions, an id such as ``patient01``, a file that is named
    as a lesion, or a mask of an unknown structure, that cannot be used, or a folder that cannot be searched. These are
    errors. Everything that is not used is listed in the notes of the manifest; scans that cannot be reached stay in the
    manifest and fail when they are read.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    selection : BidsSelection
        Participants, sessions and scans to read; by default all.

    Returns
    -------
    Manifest
        Sorted by subject and session.

    Raises
    ------
    UserError
        No T1w; a ``participants.tsv`` that is unreadable or contains invalid values; labels with characters that BIDS
        forbids; participants whose group is unknown although the dataset contains signs of patients; a selection that
        the dataset does not meet. All problems are reported at once.
    """
    folder = folder.absolute()
    found = find_scans(folder)
    if unmet := selection.problems(found):
        raise UserError(unmet)
    scans = selection.sessions_of(found)
    unreached = {session: why for session, why in found.unreached.items() if session in scans}
    table = read_participants(folder, selection.unknown_group)
    if not any("t1w" in of for of in scans.values()):
        advice = (
            "Check what was selected"
            if any("t1w" in of for of in found.sessions.values())
            else "Use the root of the dataset, or list the scans in a CSV"
        )
        raise UserError([
            f"{private(folder)}: no T1w found, expected a BIDS dataset with sub-*/anat/*_T1w.nii.gz. {advice}.",
            *([f"{_MISPLACED}: {_files(folder, found.misplaced)}. Rename or move them."] if found.misplaced else []),
            *table.problems,
        ])  # fmt: skip
    spaces = {session: _space(of.get("t1w", ())) for session, of in found.sessions.items() if of}
    masks = find_masks(folder, spaces, selection.derivatives)
    chosen = _choose_files(scans, table, masks, selection.unknown_group)
    without_scans = sorted(set(table.participants) - {subject_id for subject_id, _ in found.sessions})
    problems = [
        *table.problems,
        *chosen.problems,
        *(
            f"{name} and {other} differ only in case, expected unique ids. Rename the folder of one of them."
            for _, name, _, other in differing_in_case(chosen.records)
        ),
    ]
    if selection.unknown_group is None:
        problems += check_groups(
            folder,
            table,
            masks,
            with_scans=list(dict.fromkeys(record.subject_id for record in chosen.records)),
            without_scans=without_scans,
            unreached=[participant[0] for participant in unreached],
        )
    if problems:
        raise UserError(problems)
    notes = _notes(table, masks, chosen, unreached, without_scans, selection.unknown_group)
    if misplaced := [*found.misplaced, *masks.misplaced]:
        notes.append(f"{_MISPLACED}: {_files(folder, misplaced)}.")
    if masks.skipped:
        skipped = some_of(_shown(folder, path) for path in masks.skipped)
        notes.append(f"output folders of voxout, in which no masks are searched: {skipped}.")
    return Manifest(tuple(chosen.records), tuple(notes))


@dataclass
class _ChosenFiles:
    """Records of the participants with a T1w, and what is not used of the dataset.

    Attributes
    ----------
    records : list of SubjectRecord
    problems : list of str
    assumed : mapping from group to keys
        Participants without a group in the table.
    without_t1w : list of str
        Keys.
    duplicates : list of str
        First of several files of the same kind, and their number.
    other_space : list of BidsName
        Masks that are not in the space of a scan.
    """

    records: list[SubjectRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    assumed: dict[Group, list[str]] = field(default_factory=lambda: defaultdict(list))
    without_t1w: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    other_space: list[BidsName] = field(default_factory=list)


def _choose_files(
    scans: Mapping[SessionId, ScansOf], table: Participants, masks: Masks, unknown_group: Group | None
) -> _ChosenFiles:
    """Choose the scans and masks of each participant, the first by rank."""
    chosen = _ChosenFiles(other_space=list(masks.other_space))
    for participant in sorted(scans, key=lambda p: (p[0], p[1] or "")):
        subject_id, session_id = participant
        if any(label != clean_label(label) for label in (subject_id, session_id) if label is not None):
            chosen.problems.append(
                f"sub-{private(subject_id)}: its name contains characters that BIDS forbids, expected letters (A-Z) "
                f"and digits. Rename it, for instance to sub-{clean_label(subject_id)}."
            )
            continue
        found = {modality: sorted(names, key=lambda n: n.rank) for modality, names in scans[participant].items()}
        if "t1w" not in found:
            chosen.without_t1w.append(key_of(participant))
            continue
        brains, lesions = (of.get(participant, []) for of in (masks.brains, masks.lesions))
        drawn = [name for name in lesions if name.drawn_on in found]
        chosen.other_space += [name for name in lesions if name not in drawn]
        for names in (*found.values(), brains, drawn):
            if len(names) > 1:
                chosen.duplicates.append(f"{private(names[0].path.name)} of {len(names)}")
        row = table.participants.get(subject_id, Participant())
        derived: Group = "patient" if subject_id in masks.with_lesion_mask else "control"
        group = row.group or unknown_group or derived
        if row.group is None:
            chosen.assumed[group].append(key_of(participant))
        chosen.records.append(
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
    return chosen


def _notes(
    table: Participants,
    masks: Masks,
    chosen: _ChosenFiles,
    unreached: Mapping[SessionId, str],
    without_scans: Sequence[str],
    unknown_group: Group | None,
) -> list[str]:
    """Return notes on everything that is not used."""
    notes = [*table.notes] if table.exists else [f"{TABLE} is missing: ages, sexes and sites are unknown."]
    for group, keys in sorted(chosen.assumed.items()):
        has = "have a lesion mask" if group == "patient" else "have no lesion mask"
        why = "" if unknown_group else f" because they {has}"
        notes.append(f"no group in participants.tsv, treated as {group}{why}: {some_of(keys)}.")
    for names, what in (
        (chosen.other_space, "masks not used because they are not in the space of a scan"),
        (masks.unmatched, "masks not used because they do not match exactly one scan"),
        (masks.possible_lesions, "possible lesion images not used because they are not named label-lesion_mask"),
    ):
        if names:
            notes.append(f"{what}: {some_of(private(name.path.name) for name in names)}.")
    if unreached:
        notes.append(f"cannot be reached: {some_of(f'{key_of(p)} ({why})' for p, why in unreached.items())}.")
    if chosen.without_t1w:
        notes.append(f"left out, no T1w: {some_of(chosen.without_t1w)}.")
    if chosen.duplicates:
        notes.append(f"the first of several files of the same kind is used: {some_of(chosen.duplicates)}.")
    if without_scans:
        notes.append(f"in {TABLE}, but without scans: {some_of(f'sub-{quoted(s)}' for s in without_scans)}.")
    return notes


def _space(scans: Sequence[BidsName]) -> str:
    """Return the space that the names of all these scans give, ``""`` if they give none or several."""
    spaces = {name.entities.get("space", "") for name in scans}
    return spaces.pop() if len(spaces) == 1 else ""


def _files(folder: Path, names: Sequence[BidsName]) -> str:
    return some_of(_shown(folder, name.path) for name in names)


def _shown(folder: Path, path: Path) -> str:
    """Return a path for a message: within the dataset, or as it is in a derivative dataset elsewhere."""
    return private(path.relative_to(folder) if path.is_relative_to(folder) else path)
