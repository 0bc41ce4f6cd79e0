"""Opening of files, with clear errors for missing, unreadable and not yet fetched files.

Datasets of datalad, git-annex and Git LFS contain links and pointers until their content is fetched. Such files are
reported as not fetched.
"""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from .errors import UserError, private

_FETCH = "Fetch it (`datalad get` or `git annex get`)"


def open_file(path: Path, *, expected: str) -> BufferedReader:
    """Open a file for reading, positioned at its first byte.

    Parameters
    ----------
    path : Path
    expected : str
        Expected content, for error messages: ``"an image file (.nii, .nii.gz or .mgz)"``.

    Raises
    ------
    UserError
        No such file, a link or pointer to content that is not on this machine, a folder, no permission.
    """
    try:
        # Check for a pipe first: opening one would wait for a writer.
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UserError(f"{private(path)}: is a folder, expected {expected}. Give the path of the file in it.")
        if not stat.S_ISREG(kind):
            raise UserError(f"{private(path)}: is a device or a pipe, expected {expected}. Give the path of a file.")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise _open_error(path, error, expected) from error
    try:
        start = file.peek(64)[:64]
    except OSError as error:
        file.close()
        raise _open_error(path, error, expected) from error
    pointer = pointer_in(start)
    if pointer:
        file.close()
        raise UserError(
            f"{private(path.name)}: is a {pointer[0]} pointer to content that is not on this machine, expected "
            f"{expected}. {pointer[1]}."
        )
    return file


def is_readable(path: Path) -> bool:
    """Whether the content of a file can be read on this machine now."""
    try:
        open_file(path, expected="a file").close()
    except UserError:
        return False
    return True


def read_regular(path: Path, largest: int) -> bytes:
    """Return the content of a regular file (no pipe or device) of at most `largest` bytes.

    Raises
    ------
    ValueError
        Not a regular file, or too large.
    OSError
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is not a regular file")
    if state.st_size > largest:
        raise ValueError(f"it has {state.st_size:,} bytes")
    return path.read_bytes()


def open_to_append(path: Path) -> TextIO:
    """Open a regular file at its end; create it if it does not exist.

    An existing file is never emptied, a link never followed, and a pipe never waited for.

    Raises
    ------
    UserError
        A link, a pipe or a folder.
    OSError
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "a", encoding="utf-8")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    raise UserError(
        f"{private(path)}: is a link, a pipe or a folder, expected a regular file to write to. Move it away, or choose "
        "another output folder."
    )


def pointer_in(start: bytes) -> tuple[str, str] | None:
    """Return the tool whose pointer a file starts with and how to fetch its content, or None for actual content."""
    if start.startswith(b"/annex/objects/"):
        return "git-annex", _FETCH
    if start.startswith(b"version https://git-lfs.github.com/"):
        return "Git LFS", "Fetch it (`git lfs pull`)"
    return None


def _open_error(path: Path, error: OSError | ValueError, expected: str) -> UserError:
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        return UserError(
            f"{private(path)}: cannot be opened ({why}). Check the permissions of the file and its folders."
        )
    if any(_is_broken_link(part) for part in (path, *path.parents)):
        return UserError(
            f"{private(path)}: is a link to content that is not on this machine, expected the file itself. {_FETCH}, "
            "or correct the link."
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{private(path)}: no such file, expected {expected}. Check the path.")
    return UserError(f"{private(path)}: cannot be opened ({why}). Check the file and its permissions.")


def _is_broken_link(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except (OSError, ValueError, RuntimeError):
        # A link to itself, or an invalid name.
        return False


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
