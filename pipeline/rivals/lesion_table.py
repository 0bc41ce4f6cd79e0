"""Table of the kinds of lesions, for figures by kind and by contrast."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from ...data_manifests.cohort.manifest import read_table
from ...data_manifests.cohort.table_cells import quoted
from ...data_manifests.errors import UserError, private
from ...data_manifests.user_paths import reach
from ...evaluation.scoring.side_by_side import LesionKind

_CENTRE = "x_mm", "y_mm", "z_mm"
_COLUMNS = "subject", *_CENTRE


def read_lesion_table(path: Path, subjects: Collection[str]) -> tuple[LesionKind, ...]:
    """Read a table with a row for each lesion: its subject, its centre, and any further columns to group by.

    Parameters
    ----------
    path : Path
        CSV file with columns subject (as in ``lesions.csv`` of the scores: sub-01), x_mm, y_mm, z_mm (RAS+ mm in the
        space of the scores) and, for example, kind and contrast.
    subjects : collection of str
        Keys that exist.

    Raises
    ------
    UserError
        The file cannot be read, a column is missing, a coordinate is no number, or a subject is not in the run.
    """
    reach(path, "a table (CSV) of lesions")
    header, rows = read_table(path)
    missing = [name for name in _COLUMNS if name not in header]
    further = [name for name in header if name not in _COLUMNS]
    if missing or not further:
        lacks = f"column {', '.join(missing)}" if missing else "a column to group by, such as kind"
        raise UserError(
            f"--lesions {private(path.name)}: lacks {lacks} (found: {quoted(', '.join(header), 300)}), expected "
            f"{', '.join(_COLUMNS)} and, for example, kind. Add it."
        )
    problems, kinds = [], []
    for number, row in rows:
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
        key, centre = cells.get("subject", ""), _numbers(cells)
        if key not in subjects:
            problems.append(f"--lesions, row {number}: {quoted(key)} is not a mapped subject. Use ids such as sub-01.")
        elif centre is None:
            problems.append(f"--lesions, row {number}: {', '.join(_CENTRE)} are not three numbers. Correct them.")
        else:
            groups = {name: cells[name] for name in further if cells.get(name)}
            kinds.append(LesionKind(key, centre, groups))
    if problems:
        raise UserError(problems)
    return tuple(kinds)


def _numbers(cells: Mapping[str, str]) -> tuple[float, float, float] | None:
    try:
        x, y, z = (float(cells[name]) for name in _CENTRE)
    except (KeyError, ValueError):
        return None
    return (x, y, z) if all(map(math.isfinite, (x, y, z))) else None
