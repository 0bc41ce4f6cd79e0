"""Reading of a BIDS dataset as a manifest.

Scans are read from ``sub-*/[ses-*/]anat``, participants from ``participants.tsv`` and masks from ``derivatives``.
"""

import os
from collections import defaultdict
from pathlib import Path

from ..errors import UserError, private, some_of
from ..terms import BIDS_SUFFIX, MODALITIES, Group, Modality
from .bids_groups import check_groups
from .bids_masks import find_masks
from .bids_names import BidsName, SessionId
from .bids_participants import TABLE, Participant, read_participants
from .subject import Manifest, SubjectRecord
from .table_cells import clean_label, quoted

_Scans = dict[Modality, list[BidsName]]


def read_bids(folder: Path) -> Manifest:
    """Read a BIDS dataset.

    Scans are ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``*_FLAIR``; if there are several, the one with the fewest
    variant entities is used (`BidsName.rank`). Participants are read from ``participants.tsv`` (`group`, `age`, `sex`,
    `site`). Masks are ``*_desc-brain_mask`` and ``*_label-lesion_mask`` (or ``label-WMH``, ``_roi``, ``_dseg``)
    anywhere under ``derivatives`` or in the folders of the scans, including linked folders. Masks must be in the space
    of the T1w; lesion masks may also be in the space of the FLAIR (``space-FLAIR``). A mask without a session belongs
    to the only session. Output folders of voxout are not searched.

    Participants without a group are patients if they have a lesion mask. Otherwise they are controls, unless the
    dataset contains signs of further patients: a row of the table without a folder, a column such as `diagnosis`, a
    file that is named as a lesion but cannot be used, or a folder that cannot be searched. These are errors. Everything
    that is not used is listed in the notes of the manifest; scans that cannot be reached stay in the manifest and fail
    when they are read.

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
        No T1w; a ``participants.tsv`` that is unreadable or contains invalid values; labels with characters that BIDS
        forbids; participants whose group is unknown although the dataset contains signs of patients. All problems are
        reported at once.
    """
    folder = folder.absolute()
    scans, unreached = _find_scans(folder)
    table = read_participants(folder)
    problems = list(table.problems)
    if not any("t1w" in found for found in scans.values()):
        raise UserError([
            f"{private(folder)}: no T1w found, expected a BIDS dataset with sub-*/anat/*_T1w.nii.gz. Use the root "
            "of the dataset, or list the scans in a CSV.",
            *problems,
        ])  # fmt: skip
    masks = find_masks(folder, [participant for participant, found in scans.items() if found])
    notes = [] if table.exists else [f"{TABLE} is missing: ages, sexes and sites are unknown."]
    other_space = list(masks.other_space)
    records, assumed, without_t1w, duplicates = [], defaultdict(list), [], []
    for participant in sorted(scans, key=lambda p: (p[0], p[1] or "")):
        subject_id, session_id = participant
        labels = [label for label in (subject_id, session_id) if label is not None]
        if any(label != clean_label(label) for label in labels):
            clean = clean_label(subject_id)
            problems.append(
                f"sub-{private(subject_id)}: its name contains characters that BIDS forbids, expected letters (A-Z) "
                f"and digits. Rename it, for instance to sub-{clean}."
            )
            continue
        key = "_".join([f"sub-{subject_id}"] + ([f"ses-{session_id}"] if session_id else []))
        found = {modality: sorted(names, key=lambda n: n.rank) for modality, names in scans[participant].items()}
        if "t1w" not in found:
            without_t1w.append(key)
            continue
        brains = masks.brains.get(participant, [])
        drawn = [name for name in masks.lesions.get(participant, []) if name.drawn_on in found]
        other_space += [name for name in masks.lesions.get(participant, []) if name not in drawn]
        candidates = [*found.values(), brains, drawn]
        duplicates += [f"{private(names[0].path.name)} of {len(names)}" for names in candidates if len(names) > 1]
        row = table.participants.get(subject_id, Participant())
        group: Group = row.group or ("patient" if subject_id in masks.with_lesion_mask else "control")
        if row.group is None:
            assumed[group].append(key)
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
    without_scans = sorted(set(table.participants) - {subject_id for subject_id, _ in scans})
    with_scans = list(dict.fromkeys(record.subject_id for record in records))
    problems += check_groups(
        folder,
        table,
        masks,
        with_scans=with_scans,
        without_scans=without_scans,
        unreached=[participant[0] for participant in unreached],
    )
    for group, keys in sorted(assumed.items()):
        why = "have a lesion mask" if group == "patient" else "have no lesion mask"
        notes.append(f"no group in participants.tsv, treated as {group} because they {why}: {some_of(keys)}.")
    if other_space:
        names = some_of(private(n.path.name) for n in other_space)
        notes.append(f"masks not used because they are not in the space of a scan: {names}.")
    if masks.unmatched:
        names = some_of(private(n.path.name) for n in masks.unmatched)
        notes.append(f"masks not used because they do not match exactly one scan: {names}.")
    if masks.possible_lesions:
        names = some_of(private(n.path.name) for n in masks.possible_lesions)
        notes.append(f"possible lesion images not used because they are not named label-lesion_mask: {names}.")
    if unreached:
        notes.append(f"cannot be reached: {some_of(f'{_key(p)} ({why})' for p, why in unreached.items())}.")
    if without_t1w:
        notes.append(f"left out, no T1w: {some_of(without_t1w)}.")
    if duplicates:
        notes.append(f"the first of several files of the same kind is used: {some_of(duplicates)}.")
    if without_scans:
        notes.append(f"in {TABLE}, but without scans: {some_of(f'sub-{quoted(s)}' for s in without_scans)}.")
    if problems:
        raise UserError(problems)
    return Manifest(tuple(records), tuple(notes))


def _key(participant: SessionId) -> str:
    return f"sub-{participant[0]}" + (f"_ses-{participant[1]}" if participant[1] else "")


# -- scans -----------------------------------------------------------------------------------------------------------
def _find_scans(folder: Path) -> tuple[dict[SessionId, _Scans], dict[SessionId, str]]:
    """Return the scans of all participants, and the participants whose folder cannot be read with the reason.

    A participant whose folder cannot be read gets a T1w of the default name. Reading it fails later, for this
    participant only.
    """
    scans: dict[SessionId, _Scans] = {}
    unreached: dict[SessionId, str] = {}

    def names_in(place: Path, participant: SessionId) -> list[str]:
        try:
            return sorted(os.listdir(place))
        except NotADirectoryError:
            return []
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            unreached[participant] = "a broken link" if missing else error.strerror or "not readable"
            anat = place if place.name == "anat" else place / "anat"
            scans[participant] = {
                "t1w": [BidsName.from_path(anat / f"{_key(participant)}_{BIDS_SUFFIX['t1w']}.nii.gz")]
            }
            return []

    def read_anat(place: Path, participant: SessionId) -> None:
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
        raise UserError(f"{private(folder)}: cannot be read ({error.strerror}). Check its permissions.") from error
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
