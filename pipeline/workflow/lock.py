"""Lock of an output folder: one run at a time."""

import errno
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...data_manifests.errors import UserError, for_terminal, private
from ...data_manifests.open_file import open_to_append
from .standard_streams import write_line


@contextmanager
def sole_user(folder: Path, *, patience_s: float = 0.3) -> Iterator[bool]:
    """Lock an output folder, since two runs at once would use each other's unfinished files.

    Parameters
    ----------
    folder : Path
        If its file system does not support locks, a warning is printed and the run continues without one.
    patience_s : float
        How long to wait for another process; a question of `is_locked` holds the lock for a moment.

    Yields
    ------
    bool
        Whether the folder is locked.

    Raises
    ------
    UserError
        Another process holds the lock, or the lock file cannot be written or is not a regular file.
    """
    try:
        file = open_to_append(folder / ".lock")
    except PermissionError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: its lock file cannot be written ({error.strerror}), since it "
            "belongs to another user. Choose another output folder."
        ) from error
    with file:
        held = True
        try:
            # The system releases the lock when the process ends, in whatever way.
            _lock(file.fileno(), patience_s)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise UserError(
                    f"{private(folder, 'the output folder')}: another voxout process is using this folder. Wait for "
                    "it, or choose another output folder."
                ) from error
            held = False
            warning = (
                f"{private(folder, 'the output folder')}: its file system does not support locks "
                f"({error.strerror}). Start only one run at a time in this folder."
            )
            write_line(f"voxout: {for_terminal(warning)}", sys.stderr)
        yield held


def _lock(file: int, patience_s: float) -> None:
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def is_locked(folder: Path) -> bool:
    """Whether a run is working in an output folder; also True where the file system does not support locks."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
