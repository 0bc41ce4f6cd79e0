"""Reading of a participant table without scans: ids with group, site, age and sex."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, private
from ..terms import GROUPS, Group
from ..user_paths import reach
from .manifest import read_table
from .match_ids import identity
from .table_cells import Cells, known_sex, quoted


@dataclass(frozen=True)
class Person:
    """Row of a participant table. `group` is None if the table does not contain it."""

    group: Group | None = None
    site: str | None = None
    age: float | None = None
    sex: str | None = None


def read_participant_table(path: Path) -> Mapping[str, Person]:
    """Read a CSV with the column `subject_id` and any of `session_id`, `group`, `site`, `age` and `sex`.

    Other columns are ignored: a manifest as for `voxout run` is accepted too. A sex that is not known is left out.

    Returns
    -------
    mapping from identity (see `match_ids.identity`) to Person

    Raises
    ------
    UserError
        All problems at once, each with its row.
    """
    reach(path, "a table (CSV) with the column subject_id")
    header, rows = read_table(path)
    if "subject_id" not in header:
        raise UserError(
            f"{private(path.name)}: column subject_id is missing (found: {quoted(', '.join(header), 300)}). Add it."
        )
    participants: dict[str, Person] = {}
    rows_of: dict[str, int] = {}
    problems: list[str] = []
    for number, texts in rows:
        cells = Cells(dict(zip(header, texts, strict=False)), f"row {number}")
        subject, session = cells.text("subject_id"), cells.text("session_id")
        sex = known_sex(cells.text("sex") or "")
        participant = Person(cells.word("group", GROUPS), cells.text("site"), cells.age(), sex)
        cells.require("subject_id")
        if subject is not None:
            name = identity(subject) + (f"_ses-{session.removeprefix('ses-')}" if session else "")
            if name in participants:
                cells.problem(f"{quoted(subject)} is also in row {rows_of[name]}, expected unique ids. Delete one row.")
            participants[name], rows_of[name] = participant, number
        problems += cells.problems
    if problems:
        raise UserError(problems)
    return participants


def person_of(name: str, participants: Mapping[str, Person]) -> Person:
    """Return the row of a session or, if the table has no row for it, of its subject; empty if there is none."""
    return participants.get(name) or participants.get(name.partition("_ses-")[0]) or Person()
