"""Reading of participant tables as bytes and rows, with limits on their size."""

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
    """Return the content of a table file.

    Raises
    ------
    UserError
        Missing, not fetched, not readable, not a regular file, or larger than `LARGEST_BYTES`.
    """
    try:
        content = read_regular(path, LARGEST_BYTES)
    except ValueError as error:
        raise UserError(
            f"{private(path)}: {error}, expected a participant table of at most {LARGEST_BYTES >> 20} MB. Give "
            "the path of the table file."
        ) from error
    except OSError as error:
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"{private(path)}: {NOT_FETCHED}") from error
        raise UserError(f"{private(path)}: cannot be read ({error.strerror}). Check its permissions.") from error
    if pointer_in(content):
        raise UserError(f"{private(path)}: {NOT_FETCHED}")
    return content


def numbered_rows(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """Return the non-empty rows with their row numbers as in a spreadsheet.

    Raises
    ------
    csv.Error
        Unclosed quotation marks, or a cell that is too long.
    UserError
        More than `MOST_ROWS` rows or `MOST_COLUMNS` columns.
    """
    rows = []
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1):
        if len(cells) > MOST_COLUMNS or len(rows) > MOST_ROWS:
            raise UserError(
                f"{private(path.name)}: has too many {'columns' if len(cells) > MOST_COLUMNS else 'rows'}, expected at "
                f"most {MOST_ROWS:,} rows of {MOST_COLUMNS:,} cells. Save the file with the table only."
            )
        if any(map(str.strip, cells)):
            rows.append((number, cells))
    return rows
