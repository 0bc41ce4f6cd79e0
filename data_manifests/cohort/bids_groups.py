"""Check whether participants without a group may be treated as controls: only without signs of further patients."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import private, some_of
from .bids_masks import Masks
from .bids_names import BidsName, likely_matches
from .bids_participants import TABLE, Participants, group_hints_of
from .table_cells import quoted

_PATIENT = re.compile(
    "patient|lesion|tumou?r|stroke|infarct|glioma|epilep|sclero|metasta|disease|alzheimer|parkinson|dement|wmh",
    re.IGNORECASE,
)
_PATIENT_WORDS = {"pat", "pats", "case", "ms", "rrms", "ppms", "spms", "cis", "gbm", "hgg", "lgg", "fcd", "tle", "tbi"}
_PATIENT_WORDS |= {"ad", "mci", "ftd", "pd", "als", "hd", "mdd", "scz", "asd", "adhd"}
_CONTROL_WORDS = {"c", "con", "ctl", "ctr", "ctrl", "control", "controls", "hc", "hv", "nc", "healthy"}
_FIX = f"Write control or patient for each participant in column group of {TABLE}."


def check_groups(
    folder: Path,
    table: Participants,
    masks: Masks,
    *,
    with_scans: Sequence[str],
    without_scans: Sequence[str],
    unreached: Sequence[str],
) -> list[str]:
    """Check whether the group of participants without one can be derived from their lesion masks.

    Parameters
    ----------
    folder : Path
    table : Participants
    masks : Masks
    with_scans, without_scans, unreached : sequence of str
        Labels of the participants with scans, of those in the table without a folder, and of those whose folder
        cannot be read (they fail individually).

    Returns
    -------
    list of str
        Problems; each lists all participants concerned. Empty if all groups are known.
    """
    known = {label for label, participant in table.participants.items() if participant.group is not None}
    known |= masks.with_lesion_mask
    unknown = [label for label in with_scans if label not in known]
    if not unknown:
        return []
    return [
        *_by_table(table, with_scans, without_scans, unknown),
        *_by_other_tables(folder, unknown),
        *_by_ids(unknown, with_scans),
        *_by_files(folder, masks, with_scans, unknown),
        *_by_folders(folder, masks, unknown, unreached),
    ]


def _by_table(
    table: Participants, with_scans: Sequence[str], without_scans: Sequence[str], unknown: Sequence[str]
) -> list[str]:
    problems = []
    if table.other_tables:
        problems.append(
            f"{', '.join(map(private, table.other_tables))}: found instead of {TABLE}, so the groups of "
            f"{_listed(unknown)} are unknown. Save it as {TABLE}, separated by tabs."
        )
    without_row = [label for label in unknown if label not in table.participants]
    if without_row and (table.participants or table.has_group):
        sentence = f"{TABLE}: no row for {_matches(without_row, without_scans, 'row')}"
        if without_scans:
            sentence += f"; no folder for the rows {_matches(without_scans, with_scans, 'folder')}"
        problems.append(f"{sentence}. Their groups are unknown. Use the same ids as in the folder names. {_FIX}")
    with_row = [label for label in unknown if label in table.participants]
    if table.has_group and with_row:
        problems.append(f"{TABLE}: no group for {_listed(with_row)}, expected control or patient. Fill it in.")
    elif table.group_like_columns and not table.has_group:
        several = len(table.group_like_columns) > 1
        columns = f"{'columns' if several else 'column'} {quoted(', '.join(table.group_like_columns), 300)}"
        problems.append(
            f"{TABLE}: {columns} may contain the group, but there is no column group, so the groups of "
            f"{_listed(unknown)} are unknown. Rename {'one of them' if several else 'it'} to group, with control or "
            "patient in every row."
        )
    return problems


def _by_other_tables(folder: Path, unknown: Sequence[str]) -> list[str]:
    hints = group_hints_of(folder)
    if not hints:
        return []
    return [f"{some_of(hints)}: may contain the group, so the groups of {_listed(unknown)} are unknown. {_FIX}"]


def _by_ids(unknown: Sequence[str], with_scans: Sequence[str]) -> list[str]:
    with_controls = any(_CONTROL_WORDS & _words_of(label) for label in with_scans)
    signs = _PATIENT_WORDS | ({"p", "pt"} if with_controls else set())
    hints = [label for label in unknown if _PATIENT.search(label) or signs & _words_of(label)]
    if not hints:
        return []
    return [
        f"{_listed(hints)}: the id speaks of a patient, but there is no group, so the groups of {_listed(unknown)} are "
        f"unknown. {_FIX}"
    ]


def _words_of(label: str) -> set[str]:
    """Return the words of an id in lower case, as ``ms`` of ``SiteMS07``."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", label)}


def _by_files(folder: Path, masks: Masks, with_scans: Sequence[str], unknown: Sequence[str]) -> list[str]:
    found = []
    for name in (
        *masks.possible_lesions,
        *(n for n in (*masks.other_space, *masks.unmatched, *masks.misplaced) if n.is_lesion),
    ):
        label = name.participant[0]
        if label in with_scans and label not in unknown and name not in masks.misplaced:
            continue
        shown = private(name.path.relative_to(folder))
        found.append(f"{shown} of sub-{label}" if label in unknown else f"{shown}{_owner(name, with_scans)}")
    if not found:
        return []
    return [
        f"{'possible lesion images' if len(found) > 1 else 'a possible lesion image'} cannot be used as lesion mask: "
        f"{', '.join(found)}. It is therefore unknown which of {_listed(unknown)} are patients. {_FIX} Lesion masks "
        "must be named sub-<id>_label-lesion_mask.nii.gz."
    ]  # fmt: skip


def _by_folders(folder: Path, masks: Masks, unknown: Sequence[str], unreached: Sequence[str]) -> list[str]:
    problems = []
    for path, why in sorted(masks.unsearched.items()):
        parts = path.relative_to(folder).parts
        label = next((part.removeprefix("sub-") for part in parts if part.startswith("sub-")), None)
        if label in unreached and parts[0].startswith("sub-"):
            continue
        concerned = [participant for participant in unknown if participant == label] or unknown
        problems.append(
            f"{private(Path(*parts))}: cannot be searched ({why}) and may contain lesion masks, so the groups of "
            f"{_listed(concerned)} are unknown. Make it readable (or fetch it). {_FIX}"
        )
    return problems


def _owner(name: BidsName, with_scans: Sequence[str]) -> str:
    labels = [name.participant[0]] if name.participant[0] else [*name.words, name.suffix]
    owners = [owner for label in labels for owner in likely_matches(label, with_scans)]
    return (
        f" (likely of {_listed(owners)})"
        if owners
        else " (of a participant without scans)"
        if name.participant[0]
        else ""
    )


def _matches(labels: Iterable[str], among: Sequence[str], what: str) -> str:
    found = {label: likely_matches(label, among) for label in labels}
    return ", ".join(f"sub-{quoted(a)}" + (f" (likely {what} {_listed(b)})" if b else "") for a, b in found.items())


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(f"sub-{quoted(label)}" for label in labels)
