"""A user's table of people as bytes and as rows, up to a size that tables of people have."""

import csv
import io
import os
from pathlib import Path

from .errors import UserError, private
from .open_file import pointer_in, read_regular
from .user_paths import NOT_FETCHED

LARGEST_BYTES = 2**24
MOST_ROWS, MOST_COLUMNS = 100_000, 1000


def table_bytes(path: Path) -> bytes:
    """The content of a table.

    Raises
    ------
    UserError
        Not there, not fetched, not readable, no file, or larger than any table of people.
    """
    try:
        content = read_regular(path, LARGEST_BYTES)
    except ValueError as error:
        raise UserError(
            f"{private(path)}: {error}, expected a table of people of at most {LARGEST_BYTES >> 20} MB. Name the file "
            "of the table."
        ) from error
    except OSError as error:
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"{private(path)}: {NOT_FETCHED}") from error
        raise UserError(f"{private(path)}: cannot be read ({error.strerror}). Check who may read it.") from error
    if pointer_in(content):
        raise UserError(f"{private(path)}: {NOT_FETCHED}")
    return content


def numbered_rows(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows that hold something, numbered as a spreadsheet does.

    Raises
    ------
    csv.Error
        Quotation marks that do not close, or a cell without end.
    UserError
        More rows or columns than any table of people has.
    """
    rows = []
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1):
        if len(cells) > MOST_COLUMNS or len(rows) > MOST_ROWS:
            raise UserError(
                f"{private(path.name)}: has {'columns' if len(cells) > MOST_COLUMNS else 'rows'} without end, expected "
                f"at most {MOST_ROWS:,} rows of {MOST_COLUMNS:,} cells. Save the table alone."
            )
        if any(map(str.strip, cells)):
            rows.append((number, cells))
    return rows
