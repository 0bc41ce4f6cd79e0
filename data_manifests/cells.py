"""The cells of one row of a table of people, and the sentences for those that cannot be used."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

Word = TypeVar("Word", bound=str)

_NOTHING = {"", "n/a", "na", "nan", "none", "null"}
_OLDEST_YEARS = 120


def clean_label(label: str) -> str:
    """A label with the characters that BIDS forbids left out."""
    return re.sub(r"[^A-Za-z0-9]", "", label)


class Cells:
    """One row, collecting what is wrong with it.

    Parameters
    ----------
    cells : mapping from column to text
        Columns in lower case. Empty cells and ``n/a`` count as absent.
    where : str
        What the sentences begin with, as ``"row 4"``.

    Attributes
    ----------
    problems : list of str
    """

    def __init__(self, cells: Mapping[str, str], where: str):
        stripped = {name: cell.strip() for name, cell in cells.items()}
        self._cells = {name: cell for name, cell in stripped.items() if cell.lower() not in _NOTHING}
        self.where = where
        self.problems: list[str] = []

    def problem(self, sentence: str) -> None:
        self.problems.append(f"{self.where}: {sentence}")

    def text(self, name: str) -> str | None:
        return self._cells.get(name)

    def label(self, name: str, prefix: str) -> str | None:
        """A BIDS label; its prefix may be there or not."""
        found = self.text(name)
        if found is None:
            return None
        label = found.removeprefix(prefix)
        clean = clean_label(label)
        if not label:
            self.problem(f"{name} {found} is a prefix and no more, expected a name after it. Complete it.")
        elif label != clean:
            self.problem(
                f"{name} {found} holds characters that BIDS forbids, expected letters (A-Z) and digits. "
                + (f"Write {clean}." if clean else "Choose another.")
            )
        return label or None

    def word(self, name: str, words: Sequence[Word]) -> Word | None:
        """One of a few words, in any case."""
        found = self.text(name)
        if found is None:
            return None
        if found.lower() in words:
            return words[words.index(found.lower())]  # type: ignore[arg-type]
        meant = difflib.get_close_matches(found.lower(), words, n=1)
        self.problem(
            f"{name} {found} is unknown, expected {' or '.join(words)}. "
            + (f"Did you mean {meant[0]}?" if meant else "Correct it.")
        )
        return None

    def age(self, name: str = "age") -> float | None:
        """Years; a comma as decimal mark and the ``89+`` of de-identified tables are understood."""
        found = self.text(name)
        if found is None:
            return None
        try:
            age = float(found.removesuffix("+").replace(",", "."))
        except ValueError:
            age = math.nan
        if not 0 <= age <= _OLDEST_YEARS:
            # The cell itself is not repeated: it may hold a birth date.
            self.problem(
                f"{name} is not a number of years from 0 to {_OLDEST_YEARS}. Write it as 38.5, or leave it empty."
            )
        return age
