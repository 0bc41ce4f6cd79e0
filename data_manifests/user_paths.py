"""Paths entered by users: home folders, accents, invalid names and broken links."""

import contextlib
import os
import re
import unicodedata
from pathlib import Path

from .errors import UserError, private

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, on all common file systems
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
NOT_FETCHED = (
    "a link (pointer) to content that is not on this machine, expected the content. Fetch it (datalad get, "
    "git lfs pull)."
)


def given_path(path: str | Path, what: str = "") -> Path:
    """Return a path that a caller gives; an empty text, as of an unset variable, does not mean the current folder.

    Parameters
    ----------
    path : str or Path
    what : str
        Name of the argument, for the error message; empty if the caller adds it.

    Raises
    ------
    UserError
        An empty text.
    """
    if path == "":
        sentence = "found an empty path, expected a file or folder. Write '.' for the current folder."
        raise UserError(f"{what}: {sentence}" if what else sentence)
    return Path(path)


def reach(path: Path, expected: str) -> Path:
    """Check that a path exists, and return it.

    Parameters
    ----------
    path : Path
    expected : str
        What should be there, for the error message.

    Raises
    ------
    UserError
        The path does not exist or cannot be reached.
    """
    try:
        os.stat(path)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise UserError(f"{private(path)}: {NOT_FETCHED}") from error
        what = "no such file or folder" if "folder" in expected or "dataset" in expected else "no such file"
        raise UserError(f"{private(path)}: {what}, expected {expected}. Check the path.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise UserError(f"{private(path)}: cannot be reached ({why}), expected {expected}. Check the path.") from error
    return path


def at_home(text: str) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by the home folder.

    A single name (``~$1.nii.gz``, such as lock files of Office) is a file name and not a home folder.

    Raises
    ------
    UserError
        No such home folder.
    """
    path = Path(text)
    if not text.startswith("~") or (len(path.parts) == 1 and text.rstrip("/") != "~" and not text.endswith("/")):
        return path
    if (found := os.path.expanduser(text)) != text and os.environ.get("HOME") != "":
        return Path(found)
    raise UserError(f"{private(text)}: no such home folder. Write the absolute path.")


def file_in(folder: Path, text: str) -> Path:
    r"""Return the path in a table cell, relative to a folder; accents match in any Unicode form.

    The file may be missing: the path is then returned as written. ``\`` separates folders, as in tables from Windows,
    where such a file exists and none with ``\`` in its name.

    Raises
    ------
    UserError
        Not a valid file name, a home folder that does not exist, or a drive of Windows.
    """
    if _DRIVE.match(text) and not os.path.lexists(folder / text):
        raise UserError(
            f"{private(text[:60])}: is a path of Windows, expected one of this machine. Write it relative to the "
            f"table; in WSL, drive {text[0].upper()}: is /mnt/{text[0].lower()}."
        )
    if "\0" in text or any(_bytes(part) > _LONGEST_NAME for part in text.split("/")):
        raise UserError(
            f"{private(text[:30])}...: a name has over {_LONGEST_NAME} bytes or a NUL character, expected a valid file "
            "name. Correct the cell."
        )
    literal = folder / text
    path = tidy(folder / (at_home(text) if not os.path.lexists(literal) else text))
    if _bytes(path) > _LONGEST_PATH:
        raise UserError(
            f"{private(text[:30])}...: the path has over {_LONGEST_PATH} bytes, expected fewer. Correct the cell."
        )
    for spelling in (path, Path(str(path).replace("\\", "/"))):
        if os.path.lexists(stored := _stored_path(spelling)):
            return stored
    return path


def tidy(path: Path) -> Path:
    """Remove ``..`` from a path unless this changes the target, as it may behind a symbolic link."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def real(path: Path) -> Path:
    """Resolve all symbolic links of a path; a link to itself is returned as is."""
    return Path(os.path.realpath(path))


def _bytes(path: Path | str) -> int:
    return len(str(path).encode("utf-8", "surrogateescape"))


def _stored_path(path: Path) -> Path:
    """Return the existing path with another spelling of the same names, or the path unchanged."""
    if os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:]:
        spelling = next((s for s in _spellings(part) if os.path.lexists(found / s)), None)
        if spelling is None:
            return path
        found /= spelling
    return found


def _spellings(name: str) -> list[str]:
    """Return the name with composed and decomposed accents, and as Windows-1252 bytes (from old archives)."""
    spellings = [name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    with contextlib.suppress(UnicodeEncodeError):
        spellings.append(os.fsdecode(name.encode("cp1252")))
    return list(dict.fromkeys(spellings))
