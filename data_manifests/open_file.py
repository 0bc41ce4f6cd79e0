"""Opening a user's file: what is there, what is not there yet, and what may not be read.

Datasets of datalad, git-annex and Git LFS hold links and pointers until their content is fetched: those are no images,
and no mistake in the manifest either.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

from .errors import UserError, private

_FETCH = "Fetch it (`datalad get` or `git annex get`)"


def open_file(path: Path, *, expected: str) -> BufferedReader:
    """Open a file for reading; it stands at its first byte.

    Parameters
    ----------
    path : Path
    expected : str
        What it should hold, for the sentences: ``"an image file (.nii, .nii.gz or .mgz)"``.

    Raises
    ------
    UserError
        No such file, a link or pointer to content that is not on this machine, a folder, no permission.
    """
    try:
        # A pipe has to be found out before it is opened: that would wait for a writer.
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UserError(f"{private(path)}: is a folder, expected {expected}. Name the file in it.")
        if not stat.S_ISREG(kind):
            raise UserError(f"{private(path)}: is a device or a pipe, expected {expected}. Name a file.")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise _not_opened(path, error, expected) from error
    try:
        start = file.peek(64)[:64]
    except OSError as error:
        file.close()
        raise _not_opened(path, error, expected) from error
    pointer = pointer_in(start)
    if pointer:
        file.close()
        raise UserError(
            f"{private(path.name)}: is a pointer of {pointer[0]} to content that is not on this machine, expected "
            f"{expected}. {pointer[1]}."
        )
    return file


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a file that is a file, and no pipe or device, of at most so many bytes.

    Raises
    ------
    ValueError
        It is not.
    OSError
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is not a regular file")
    if state.st_size > largest:
        raise ValueError(f"it has {state.st_size:,} bytes")
    return path.read_bytes()


def pointer_in(start: bytes) -> tuple[str, str] | None:
    """Whose pointer a file is that begins so, and how its content is fetched; None where it is content."""
    if start.startswith(b"/annex/objects/"):
        return "git-annex", _FETCH
    if start.startswith(b"version https://git-lfs.github.com/"):
        return "Git LFS", "Fetch it (`git lfs pull`)"
    return None


def _not_opened(path: Path, error: OSError | ValueError, expected: str) -> UserError:
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        return UserError(f"{private(path)}: cannot be opened ({why}). Check who may read it and the folders above it.")
    if any(_leads_nowhere(part) for part in (path, *path.parents)):
        return UserError(
            f"{private(path)}: is a link to content that is not on this machine, expected the file itself. {_FETCH}, "
            "or mend the link."
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{private(path)}: no such file, expected {expected}. Check the path.")
    return UserError(f"{private(path)}: cannot be opened ({why}). Check the file and who may read it.")


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except (OSError, ValueError, RuntimeError):
        # A link to itself, or a name that the system cannot look up.
        return False
