"""Detection of machine errors, as opposed to errors of a scan: full disks, quotas, folders that are not writable."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import SubjectError, private

_FULL_BELOW_BYTES = 2**18
"""Free space below which a file system counts as full. The operation that failed may have needed more than is left."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OTHER = {
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many files are open in this process. Raise the limit (ulimit -n), or use fewer --jobs",
    errno.ENFILE: "too many files are open on this machine. Use fewer --jobs, or wait for other programs",
    errno.ENOMEM: "no memory is left. Use fewer --jobs, or a machine with more memory",
    errno.EIO: "reading or writing failed (input/output error). Check the disk or the network drive",
    errno.ESTALE: "a network drive has lost a file (stale file handle). Check the drive",
}
_FILES = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
"""Errors that an invalid path on the command line can cause."""


def machine_trouble(error: BaseException, out: Path | None = None) -> str | None:
    """Return a message for an error caused by the machine, or None for other errors.

    Parameters
    ----------
    error : exception
        Its causes and contexts are checked too: libraries wrap system errors, some without the error number.
    out : Path, optional
        The output folder. It and the temporary folder are checked for free space.
    """
    errors = list(_chain(error))
    numbers = {e.errno for e in errors if isinstance(e, OSError)}
    if any(_is_short_write(e) for e in errors) or numbers & _NO_ROOM:
        return _no_room(out, quota=errno.EDQUOT in numbers)
    about_a_scan = any(isinstance(e, SubjectError) for e in errors)
    for number, words in _OTHER.items():
        # A scan that cannot be read is a failure of its subject, even if the drive may be the cause.
        if number in numbers and not (about_a_scan and number in (errno.EIO, errno.ESTALE)):
            return (
                f"{private(out, 'the output folder')}: {words}."
                if out is not None and number == errno.EROFS
                else f"{_capitalised(words)}."
            )
    for e in errors:
        if (
            out is not None
            and isinstance(e, OSError)
            and e.errno in (errno.EACCES, errno.EPERM)
            and _is_in(e.filename, out)
        ):
            return (
                f"{private(out, 'the output folder')}: a file or folder in it cannot be written ({e.strerror}). Check "
                "whether its files belong to another user, or choose another output folder."
            )
    # Some libraries, such as registration, only report that they failed.
    if any(isinstance(e, RuntimeError) or (e is error and isinstance(e, OSError)) for e in errors) and _full(
        _checked_folders(out)
    ):
        return _no_room(out)
    return None


def path_trouble(error: OSError) -> str | None:
    """Return a message for a path that the system rejected, or None for other errors."""
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


def _is_short_write(error: BaseException) -> bool:
    """Whether numpy raised the error for a full disk; it sets no error number."""
    return isinstance(error, OSError) and error.errno is None and "requested and" in str(error)


def _checked_folders(out: Path | None) -> list[tuple[Path, str]]:
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:  # gettempdir writes a test file: no candidate folder has space
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
    places = _checked_folders(out)
    # Partial files have been deleted by now, so a full disk may appear to have space again.
    full = _full(places) or places[:1]
    where = " and ".join(f"{private(folder)} ({role})" for folder, role in full)
    what = "no space left within the quota" if quota else "no space left"
    return f"{where}: {what} on its disk. Free some space, then run the same command again: it resumes from here."


def _is_in(filename: object, out: Path) -> bool:
    return isinstance(filename, (str, os.PathLike)) and Path(filename).is_relative_to(out)


def _capitalised(words: str) -> str:
    return words[:1].upper() + words[1:]
