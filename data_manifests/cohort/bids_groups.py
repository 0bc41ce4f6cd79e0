"""Who may be taken for healthy without a word about it: only where nothing speaks of patients."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import private
from .bids_masks import Masks
from .bids_names import BidsName, likely
from .bids_participants import TABLE, Participants
from .table_cells import quoted

_MEND = f"Write control or patient for each person in column group of {TABLE}."


def judge_groups(
    folder: Path,
    table: Participants,
    masks: Masks,
    *,
    scanned: Sequence[str],
    scanless: Sequence[str],
    unreached: Sequence[str],
) -> list[str]:
    """Say what speaks against guessing the groups of those who have none.

    Parameters
    ----------
    folder : Path
    table : Participants
    masks : Masks
    scanned, scanless, unreached : sequence of str
        Labels of the people with scans, of those in the table without a folder, and of those whose folder cannot be
        read: they fail by themselves.

    Returns
    -------
    list of str
        Problems; each names every person it concerns. None where all groups are known.
    """
    told = {label for label, participant in table.participants.items() if participant.group is not None} | masks.ill
    unknown = [label for label in scanned if label not in told]
    if not unknown:
        return []
    return [
        *_by_table(table, scanned, scanless, unknown),
        *_by_files(folder, masks, scanned, unknown),
        *_by_folders(folder, masks, unknown, unreached),
    ]


def _by_table(
    table: Participants, scanned: Sequence[str], scanless: Sequence[str], unknown: Sequence[str]
) -> list[str]:
    problems = []
    if table.others:
        problems.append(
            f"{', '.join(map(private, table.others))}: stands where {TABLE} is expected, so the groups of "
            f"{_people(unknown)} are unknown. Save it as {TABLE}, with tabs."
        )
    without_row = [label for label in unknown if label not in table.participants]
    if without_row and (table.participants or table.has_group):
        sentence = f"{TABLE}: no row of {_matches(without_row, scanless, 'row')}"
        if scanless:
            sentence += f"; no folder of the rows {_matches(scanless, scanned, 'folder')}"
        problems.append(f"{sentence}. Their groups are unknown. Write the ids as the folders have them. {_MEND}")
    with_row = [label for label in unknown if label in table.participants]
    if table.has_group and with_row:
        problems.append(f"{TABLE}: no group of {_people(with_row)}, expected control or patient. Fill it in.")
    elif table.of_groups and not table.has_group:
        several = len(table.of_groups) > 1
        problems.append(
            f"{TABLE}: {'columns' if several else 'column'} {quoted(', '.join(table.of_groups), 300)} may tell who is "
            f"a patient, but there is no column group, so the groups of {_people(unknown)} are unknown. Name "
            f"{'one of them' if several else 'it'} group, with control or patient in every row."
        )
    return problems


def _by_files(folder: Path, masks: Masks, scanned: Sequence[str], unknown: Sequence[str]) -> list[str]:
    found = []
    for name in (*masks.hints, *(n for n in (*masks.elsewhere, *masks.homeless) if n.is_lesion)):
        label = name.participant[0]
        if label in scanned and label not in unknown:
            continue
        marked = private(name.path.relative_to(folder))
        found.append(f"{marked} of sub-{label}" if label in unknown else f"{marked}{_owner(name, scanned)}")
    if not found:
        return []
    return [
        f"{'files speak' if len(found) > 1 else 'a file speaks'} of lesions and cannot be used as lesion masks: "
        f"{', '.join(found)}. So it is unknown who among {_people(unknown)} is a patient. {_MEND} A mask to be used "
        "is called sub-<id>_label-lesion_mask.nii.gz."
    ]  # fmt: skip


def _by_folders(folder: Path, masks: Masks, unknown: Sequence[str], unreached: Sequence[str]) -> list[str]:
    problems = []
    for path, why in sorted(masks.closed.items()):
        parts = path.relative_to(folder).parts
        label = next((part.removeprefix("sub-") for part in parts if part.startswith("sub-")), None)
        if label in unreached and parts[0].startswith("sub-"):
            continue
        concerned = [participant for participant in unknown if participant == label] or unknown
        problems.append(
            f"{private(Path(*parts))}: cannot be searched ({why}) and may hold lesion masks, so the groups of "
            f"{_people(concerned)} are unknown. Make it readable (or fetch it). {_MEND}"
        )
    return problems


def _owner(name: BidsName, scanned: Sequence[str]) -> str:
    labels = [name.participant[0]] if name.participant[0] else [*name.words, name.suffix]
    owners = [owner for label in labels for owner in likely(label, scanned)]
    return (
        f" (likely of {_people(owners)})" if owners else " (of a person without scans)" if name.participant[0] else ""
    )


def _matches(labels: Iterable[str], among: Sequence[str], what: str) -> str:
    found = {label: likely(label, among) for label in labels}
    return ", ".join(f"sub-{quoted(a)}" + (f" (likely {what} {_people(b)})" if b else "") for a, b in found.items())


def _people(labels: Iterable[str]) -> str:
    return ", ".join(f"sub-{quoted(label)}" for label in labels)
