"""Parsing of the cells of a participant table, with error messages for invalid cells."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..decimal_text import decimal

Word = TypeVar("Word", bound=str)

# English, German, French, Spanish, Italian and Dutch, by their first three letters.
_MONTHS = re.compile(
    "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mrz|mär|mai|okt|dez|fév|fev|avr|jui|aoû|aou|déc|ene|abr|ago|dic|"
    "gen|mag|giu|lug|set|ott|mrt|mei",
    re.IGNORECASE,
)
_DAY_MONTH_YEAR = re.compile(
    r"\d{1,2}([-/.])\d{1,2}\1(\d{4}|\d{2})( .*)?|\d{4}([-/.])\d{1,2}\4\d{1,2}([ T].*)?"  # 1/3/2021, 2021-03-01 00:00
)
_WITH_MONTH = re.compile(r"(?:\d{1,4}\.?[-/. ])?([^\W\d_]{3,10})\.?(?:[-/. ]\d{1,4})?")  # 1-Mar, Mar-01, 1. Mrz 21
_NUMBER = re.compile(r"(\d+)[.,](\d*)(?:[eE]\+?\d+)?|\d+[eE]\+\d+")
MISSING = {"", "-", "--", "\N{EN DASH}", "\N{EM DASH}", "n/a", "na", "nan", "none", "null"}
_OLDEST_YEARS = 120
_LONGEST_LABEL = 64
"""Limit of labels, because file names contain several labels and must not exceed 255 bytes."""


_SEXES = {
    "F": ("f", "female", "woman", "w", "weiblich", "frau", "femme", "féminin", "mujer", "femenino", "vrouw", "femmina"),
    "M": ("m", "male", "man", "männlich", "mann", "homme", "masculin", "hombre", "masculino", "maschio"),
    "O": ("o", "other", "d", "divers", "x", "autre", "otro"),
}
"""Words for a sex by the letter that BIDS has for it. Numbers are none: 1 is male in some tables, female in others."""
EXPECTED_SEX = "F (female), M (male) or O (other)"


def known_sex(text: str) -> str | None:
    """Return the letter of a sex, F, M or O; None for an unknown word."""
    return next((letter for letter, words in _SEXES.items() if text.strip().lower() in words), None)


def clean_label(label: str) -> str:
    """Return a label without the characters that BIDS forbids."""
    return re.sub(r"[^A-Za-z0-9]", "", label)


def advice_on_label(label: str) -> str:
    """Return advice for an id with characters that BIDS forbids, also if a spreadsheet has changed the id."""
    if _DAY_MONTH_YEAR.fullmatch(label) or _is_month(label):
        return "It looks like an id that a spreadsheet changed to a date. Write the id again in a text column."
    if number := _NUMBER.fullmatch(label):
        if number[1] and not (number[2] or "").strip("0") and "e" not in label.lower():
            return f"Write {quoted(number[1])}."
        return "It looks like an id that a spreadsheet changed to a number. Write the id again in a text column."
    return f"Write {quoted(clean)}." if (clean := clean_label(label)) else "Choose another id."


def _is_month(label: str) -> bool:
    named = _WITH_MONTH.fullmatch(label)
    return named is not None and any(map(str.isdigit, label)) and _MONTHS.match(named[1]) is not None


def quoted(cell: str, longest: int = 60) -> str:
    """Return a cell for a message: truncated to `longest` characters, invisible ones shown as ``<U+200B>``."""
    cell = cell if len(cell) <= longest else f"{cell[:longest]}..."
    return "".join(letter if letter.isprintable() else f"<U+{ord(letter):04X}>" for letter in cell)


class Cells:
    """Cells of one row, with the collected problems.

    Parameters
    ----------
    cells : mapping from column to text
        Columns in lower case. Empty cells, ``n/a`` and a dash count as missing.
    where : str
        Beginning of the messages, such as ``"row 4"``.

    Attributes
    ----------
    problems : list of str
    """

    def __init__(self, cells: Mapping[str, str], where: str):
        stripped = {name: cell.strip() for name, cell in cells.items()}
        self._cells = {name: cell for name, cell in stripped.items() if cell.lower() not in MISSING}
        self._missing = {name: cell for name, cell in stripped.items() if cell and name not in self._cells}
        self.where = where
        self.problems: list[str] = []

    def problem(self, sentence: str) -> None:
        """Add a sentence to the problems of the row."""
        self.problems.append(f"{self.where}: {sentence}")

    def text(self, name: str) -> str | None:
        """Text of a cell; None if it is missing."""
        return self._cells.get(name)

    def require(self, name: str, prefix: str = "") -> None:
        """Add a problem if a cell is missing or only a prefix."""
        if name in self._missing:
            self.problem(
                f"{name} is {quoted(self._missing[name])}, which stands for a missing value, also in quotation marks. "
                "Write another value."
            )
        elif self._cells.get(name, prefix) == prefix:
            self.problem(f"{name} is empty. Fill it in.")

    def label(self, name: str, prefix: str) -> str | None:
        """BIDS label, with or without its prefix."""
        found = self.text(name)
        if found is None:
            return None
        label = found.removeprefix(prefix)
        clean = clean_label(label)
        if not label:
            self.problem(f"{name} {quoted(found)} is only a prefix, expected a label after it. Complete it.")
        elif len(label) > _LONGEST_LABEL:
            self.problem(
                f"{name} {quoted(found)} has {len(label):,} characters, expected at most {_LONGEST_LABEL}. Shorten it."
            )
        elif label != clean:
            self.problem(
                f"{name} {quoted(found)} contains characters that BIDS forbids, expected letters (A-Z) and digits. "
                + advice_on_label(label)
            )
        return label or None

    def word(self, name: str, words: Sequence[Word]) -> Word | None:
        """One of the given words, case-insensitive."""
        found = self.text(name)
        if found is None:
            return None
        if found.lower() in words:
            return words[words.index(found.lower())]
        similar = difflib.get_close_matches(found.lower(), words, n=1)
        self.problem(
            f"{name} {quoted(found)} is unknown, expected {' or '.join(words)}. "
            + (f"Did you mean {similar[0]}?" if similar else "Correct it.")
        )
        return None

    def age(self) -> float | None:
        """Age in years. A decimal comma and ``89+`` (from de-identified tables) are accepted."""
        found = self.text("age")
        if found is None:
            return None
        age = decimal(found.removesuffix("+").replace(",", "."))
        if age is None or not 0 <= age <= _OLDEST_YEARS:
            # The cell is not quoted because it may contain a birth date.
            self.problem(
                f"age is not a number of years from 0 to {_OLDEST_YEARS}. Write it as 38.5, or leave it empty."
            )
            return None
        return age

    def sex(self) -> str | None:
        """F, M or O; words of several languages are accepted."""
        found = self.text("sex")
        if found is None:
            return None
        letter = known_sex(found)
        if letter is None:
            self.problem(f"sex {quoted(found)} is unknown, expected {EXPECTED_SEX}. Correct it, or leave it empty.")
        return letter
