"""Trouble of the machine, told apart from trouble with a scan: full disks, quotas, folders that cannot be written."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import SubjectError, private

_FULL_BELOW_BYTES = 2**18
"""A file system with less room than that is taken for full: what has just failed on it may have asked for more."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OTHER = {
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many files are open in this process. Raise the limit (ulimit -n), or use fewer --jobs",
    errno.ENFILE: "too many files are open on this machine. Use fewer --jobs, or wait for other programs",
    errno.ENOMEM: "no memory is left. Use fewer --jobs, or a machine with more memory",
    errno.EIO: "reading or writing failed (input/output error). Look after the disk or the network drive",
    errno.ESTALE: "a network drive has lost a file (stale file handle). Look after the drive",
}
_FILES = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
"""Errors that a path on the command line can cause."""


def machine_trouble(error: BaseException, out: Path | None = None) -> str | None:
    """What the machine lacks, as a sentence; None where an error is not of the machine's making.

    Parameters
    ----------
    error : exception
        With all that it came of: libraries wrap the errors of the system, some in words only.
    out : Path, optional
        The output folder. Besides it, a temporary folder elsewhere may be full.
    """
    errors = list(_chain(error))
    numbers = {e.errno for e in errors if isinstance(e, OSError)}
    if any(_short_write(e) for e in errors) or numbers & _NO_ROOM:
        return _no_room(out, quota=errno.EDQUOT in numbers)
    about_a_scan = any(isinstance(e, SubjectError) for e in errors)
    for number, words in _OTHER.items():
        # A scan that cannot be read is its subject's failure, although a drive may be behind it.
        if number in numbers and not (about_a_scan and number in (errno.EIO, errno.ESTALE)):
            return (
                f"{private(out, 'the output folder')}: {words}."
                if out is not None and number == errno.EROFS
                else f"{_capital(words)}."
            )
    for e in errors:
        if (
            out is not None
            and isinstance(e, OSError)
            and e.errno in (errno.EACCES, errno.EPERM)
            and _is_in(e.filename, out)
        ):
            return (
                f"{private(out, 'the output folder')}: a file or folder in it cannot be written ({e.strerror}). Do "
                "its files belong to another user? Choose another output folder."
            )
    # Registration and its like say only that they failed.
    if any(isinstance(e, RuntimeError) or (e is error and isinstance(e, OSError)) for e in errors) and _full(
        _places(out)
    ):
        return _no_room(out)
    return None


def path_trouble(error: OSError) -> str | None:
    """What is wrong with a path that the system refused, as a sentence; None for errors of other kinds."""
    if error.errno not in _FILES or error.filename is None:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:100]}..."
    return f"{private(shown)}: cannot be used ({error.strerror}). Check the path and its permissions."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _short_write(error: BaseException) -> bool:
    """numpy's way to say that a disk is full: it keeps no error number."""
    return isinstance(error, OSError) and error.errno is None and "requested and" in str(error)


def _places(out: Path | None) -> list[tuple[Path, str]]:
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:  # gettempdir tries to write: none of its candidates has room
        temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    places = [] if out is None else [(out, "the output folder")]
    # A run keeps its temporary files in the output folder.
    if out is None or not temporary.resolve().is_relative_to(out.resolve()):
        places.append((temporary, "the temporary folder"))
    return places


def _full(places: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    free = [_free_bytes(folder) for folder, _ in places]
    return [place for place, room in zip(places, free, strict=True) if room is not None and room < _FULL_BELOW_BYTES]


def _free_bytes(folder: Path) -> int | None:
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return 0 if state.f_files and not state.f_favail else state.f_bavail * state.f_frsize


def _no_room(out: Path | None, quota: bool = False) -> str:
    places = _places(out)
    # What was half written has been deleted by now, so that the fullest one may seem to have room again.
    known = _full(places) or places[:1]
    where = " and ".join(f"{private(folder)} ({role})" for folder, role in known)
    what = "no space left within the quota" if quota else "no space left"
    return f"{where}: {what} on its disk. Make room there, then give the same command again: it goes on from here."


def _is_in(filename: object, out: Path) -> bool:
    return isinstance(filename, (str, os.PathLike)) and Path(filename).is_relative_to(out)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
