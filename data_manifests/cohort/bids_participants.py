"""Reading of ``participants.tsv`` of a BIDS dataset."""

import csv
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, private
from ..table_file import numbered_rows, table_bytes
from ..terms import GROUPS, SPLITS, Group, Split
from .table_cells import EXPECTED_SEX, MISSING, Cells, known_sex, quoted

TABLE = "participants.tsv"
_ANYWHERE = re.compile(r"diagnos|patient|disease|disorder|patholog|cohort|lesion|healthy|clinical|phenotype|subtype")
_DISEASE = re.compile(
    r"tumou?r|epilep|seizure|stroke|infarct|sclero|gliom|glio?blast|metasta|bleed|ha?emorrhag|dement|alzheimer|parkinson"
    r"|symptom|syndrome|relaps|severity|surgery|treatment|therapy|onset|edss|nihss|(^|_)(idh|mgmt|who)(_|$)"
)
_NONE = {"no", "none", "0", "false", "n", "never", "negative"}
_AS_A_WORD = {"dx", "condition", "control", "controls", "case", "cases", "hc", "icd", "icd10", "diag", "arm"}
_LAST_WORD = {"group", "groups", "grp", "status", "type", "class", "category"}
_UNRELATED_WORDS = {"age", "blood", "marital", "smoking", "scanner", "scan", "sequence", "handedness", "employment"}
_UNRELATED_WORDS |= {"school", "education"}
_CONTROLS = {"control", "controls", "healthy", "healthy control", "healthy controls", "hc", "hv", "nc", "cn", "ctrl"}
_CONTROLS |= {"healthy volunteer", "healthy volunteers", "normal", "kontrolle"}
_CELLS = {"patient", "patients", "control", "controls", "healthy", "healthy control", "hc", "case", "kontrolle", "hv"}


@dataclass(frozen=True)
class Participant:
    """Row of ``participants.tsv``."""

    group: Group | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Participants:
    """Content of ``participants.tsv``.

    Attributes
    ----------
    participants : mapping from subject label to Participant
    exists, has_group : bool
        Whether the file exists, and whether it has a column `group`.
    group_like_columns : tuple of str
        Columns with other names that may contain the group.
    other_tables : tuple of str
        Files that may be the table under another name.
    problems, notes : tuple of str
    """

    participants: Mapping[str, Participant] = field(default_factory=dict)
    exists: bool = True
    has_group: bool = False
    group_like_columns: tuple[str, ...] = ()
    other_tables: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_participants(folder: Path, unknown_group: Group | None = None) -> Participants:
    """Read the table of a dataset.

    A dataset is often not the user's to change. In column `group`, the usual words for healthy participants stand for
    controls; beside them, other words, such as that of a disease, stand for patients. Words for a sex that are not
    known, such as numbers, stand for none.

    Parameters
    ----------
    folder : Path
    unknown_group : Group, optional
        Group of participants whose word says nothing; by default, that is a problem.

    Raises
    ------
    UserError
        The file exists but cannot be read, or has no column ``participant_id``.
    """
    path = folder / TABLE
    if not os.path.lexists(path):
        names = (name for name in sorted(os.listdir(folder)) if name.lower().startswith("participants."))
        return Participants(exists=False, other_tables=tuple(n for n in names if not n.lower().endswith(".json")))
    header, rows = _table(path)
    participants: dict[str, Participant] = {}
    problems: list[str] = []
    groups = _groups(_columns(header, rows).get("group", ()), unknown_group)
    sexes: dict[str, None] = {}
    for number, cells in rows:
        row = Cells(dict(zip(header, cells, strict=False)), f"{TABLE} row {number}")
        if any(map(str.strip, cells[len(header) :])):
            row.problem(f"found {len(cells)} cells, expected {len(header)}. Separate cells by one tab.")
        subject_id = (row.text("participant_id") or "").removeprefix("sub-")
        row.require("participant_id", "sub-")
        if subject_id and subject_id in participants:
            row.problem(f"sub-{subject_id} is listed twice, expected unique ids. Delete one row.")
        sex = row.text("sex")
        if sex is not None and known_sex(sex) is None:
            sexes[sex] = None
        group = groups.get((row.text("group") or "").lower())
        participants[subject_id] = Participant(
            group=row.word("group", GROUPS) if group is None else group,
            age=row.age(),
            sex=None if sex is None else known_sex(sex),
            site=row.text("site"),
            split=row.word("split", SPLITS),
        )
        problems += row.problems
    columns = _columns(header, rows)
    return Participants(
        participants=participants,
        has_group="group" in header,
        group_like_columns=tuple(name for name, cells in columns.items() if _may_contain_groups(name, cells)),
        problems=tuple(problems),
        notes=(
            *(f"{TABLE}: group {quoted(word)} counts as {group}." for word, group in groups.items() if word != group),
            *(f"{TABLE}: sex {quoted(word)} is not known, expected {EXPECTED_SEX}; left empty." for word in sexes),
        ),
    )


def _groups(cells: Sequence[str], unknown_group: Group | None) -> dict[str, Group]:
    """Return the groups that the words in column `group` stand for, as far as they say so."""
    words = dict.fromkeys(cell.lower() for cell in cells if cell.lower() not in MISSING)
    found: dict[str, Group] = {word: "control" for word in words if word in _CONTROLS}
    for word in words:
        # What looks like a misspelt word is left to the user.
        names_a_disease = found and not word.isdigit() and not difflib.get_close_matches(word, GROUPS, n=1)
        if word not in found and (names_a_disease or word in ("patient", "patients")):
            found[word] = "patient"
        elif word not in found and unknown_group is not None:
            found[word] = unknown_group
    return found


def group_hints_of(folder: Path) -> list[str]:
    """Return the columns and tables that may contain the group, besides ``participants.tsv``.

    These are the tables in ``phenotype`` and those of the sessions, ``sessions.tsv`` and ``*_sessions.tsv``.
    """
    subjects = [folder / name for name in _names_in(folder) if name.startswith("sub-")]
    tables = [folder / "phenotype" / name for name in _names_in(folder / "phenotype")]
    tables += [place / name for place in (folder, *subjects) for name in _names_in(place) if "sessions" in name]
    hints: dict[str, None] = {}
    for path in (path for path in tables if path.name.endswith(".tsv")):
        shown = private(path.relative_to(folder))
        try:
            header, rows = _rows(path)
        except UserError:
            hints[f"{shown} (not readable)"] = None
            continue
        if path.parent.name == "phenotype" and _may_contain_groups(path.stem.lower(), ["?"]):
            hints[shown] = None
            continue
        for name, cells in _columns(header, rows).items():
            if (name == "group" and any(cells)) or _may_contain_groups(name, cells):
                hints[f"column {quoted(name)} of {shown}"] = None
    return list(hints)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _columns(header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> dict[str, list[str]]:
    return {name: [cells[n].strip() for _, cells in rows if n < len(cells)] for n, name in enumerate(header)}


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and rows of ``participants.tsv``."""
    header, rows = _rows(path)
    if "participant_id" not in header:
        raise UserError(f"{private(path)}: column participant_id is missing, expected tab-separated columns. Add it.")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{private(path)}: column {quoted(twice[0])} occurs twice. Delete or rename one.")
    return header, rows


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header in lower case and the numbered non-empty rows."""
    content = table_bytes(path)
    try:
        lines = numbered_rows(content.decode("utf-8-sig"), "\t", path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{private(path)}: not readable, expected a tab-separated table in UTF-8. Save it again."
        ) from error
    return [cell.strip().lower() for cell in lines[0][1]] if lines else [], lines[1:]


def _may_contain_groups(name: str, cells: Sequence[str]) -> bool:
    """Whether a column may contain the group, by its name or its cells."""
    if name in ("participant_id", "group", "age", "sex", "site", "split") or not any(cells):
        return False
    words = re.findall(r"[a-z0-9]+", name)
    if not _NONE.issuperset(cell.lower() for cell in cells if cell.lower() not in MISSING) and (
        _DISEASE.search(name) or words[:1] == ["ms"] or ("grade" in words and _UNRELATED_WORDS.isdisjoint(words))
    ):
        return True
    return (
        _ANYWHERE.search(name) is not None
        or not _AS_A_WORD.isdisjoint(words)
        or (bool(words) and words[-1] in _LAST_WORD and _UNRELATED_WORDS.isdisjoint(words))
        or not _CELLS.isdisjoint(cell.lower() for cell in cells)
    )
