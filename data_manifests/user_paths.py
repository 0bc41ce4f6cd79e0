"""Paths as people write them: home folders, accents, names that no file can have, links that lead nowhere."""

import contextlib
import os
import unicodedata
from pathlib import Path

from .errors import UserError, private

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, on every file system that is in use
NOT_FETCHED = (
    "a link (pointer) to content that is not on this machine, expected the content. Fetch it (datalad get, "
    "git lfs pull)."
)


def reach(path: Path, expected: str) -> Path:
    """A path that the user named, once it is known that something is there.

    Parameters
    ----------
    path : Path
    expected : str
        What should be there, for the sentence.

    Raises
    ------
    UserError
        Nothing there, or nothing that can be reached.
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
    """A path with ``~`` or ``~user`` at its beginning replaced by that home folder.

    A single name (``~$1.nii.gz``, as Office calls its lock files) is no home folder but the name of a file.

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
    raise UserError(f"{private(text)}: no such home folder. Write the whole path, from / on.")


def file_in(folder: Path, text: str) -> Path:
    """The file that a cell names, seen from a folder; accents are found in whichever way they are stored.

    The file need not exist: the path is then as it was written.

    Raises
    ------
    UserError
        A name that no file can have, or a home folder that does not exist.
    """
    if "\0" in text or any(_bytes(part) > _LONGEST_NAME for part in text.split("/")):
        raise UserError(
            f"{private(text[:30])}...: a name of over {_LONGEST_NAME} bytes or with a NUL character, which no file "
            "has. Correct the cell."
        )
    literal = folder / text
    path = tidy(folder / (at_home(text) if not os.path.lexists(literal) else text))
    if _bytes(path) > _LONGEST_PATH:
        raise UserError(
            f"{private(text[:30])}...: a path of over {_LONGEST_PATH} bytes, which no file has. Correct the cell."
        )
    return path if os.path.lexists(path) else _as_stored(path)


def tidy(path: Path) -> Path:
    """Without ``..`` where leaving it out leads to the same place (behind a symbolic link it may not)."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def real(path: Path) -> Path:
    """Where a path leads, behind all links; one that is linked to itself leads to itself."""
    return Path(os.path.realpath(path))


def _bytes(path: Path | str) -> int:
    return len(str(path).encode("utf-8", "surrogateescape"))


def _as_stored(path: Path) -> Path:
    """The same names in another spelling, where such files exist; else the path as it came."""
    found = Path(path.anchor)
    for part in path.parts[1:]:
        spelling = next((s for s in _spellings(part) if os.path.lexists(found / s)), None)
        if spelling is None:
            return path
        found /= spelling
    return found


def _spellings(name: str) -> list[str]:
    """One letter or letter and accent; and bytes of Windows-1252, which is what old archives hold."""
    spellings = [name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    with contextlib.suppress(UnicodeEncodeError):
        spellings.append(os.fsdecode(name.encode("cp1252")))
    return list(dict.fromkeys(spellings))
