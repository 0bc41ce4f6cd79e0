"""Writing of CSV tables."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from .atomic_write import atomic_write

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With one of these at its beginning, a spreadsheet program takes a text for a formula and runs it."""


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], *, separator: str = ",") -> None:
    """Write a `csv_table` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(csv_table(header, rows, separator=separator))


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, separator: str = ",") -> bytes:
    """Return a CSV table in UTF-8; a text that would be run as a formula gets an apostrophe in front.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequences
        Text, numbers, also formatted ones (``"-0.5"``), and None for an empty cell.
    separator : str
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter=separator, lineterminator="\n" if separator == "\t" else "\r\n")
    writer.writerow(header)
    writer.writerows([_as_text(cell) for cell in row] for row in rows)
    return table.getvalue().encode()


def _as_text(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
