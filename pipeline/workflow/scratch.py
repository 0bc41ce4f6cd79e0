"""Temporary files of a run, in a folder inside its output folder that is deleted when the run ends.

In the system's temporary folder, scans and masks of a killed run would remain, and could fill a small disk.
"""

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...data_manifests.errors import UserError, private
from .interruption import closed_by
from .lock import sole_user

SCRATCH = ".scratch"
_OF_A_RUN = re.compile(r"([0-9]+)-([0-9]+)-[0-9a-f]{8}")
"""Process id, its start in clock ticks, and random letters that other users cannot guess."""


@contextmanager
def at_work_in(out: Path) -> Iterator[Path]:
    """Lock an output folder (see `sole_user`), and make a folder of temporary files in it.

    Raises
    ------
    UserError
        The folder cannot be locked, or the path of the temporary files is not a folder.
    """
    with sole_user(out) as held, scratch_folder(out, delete_remains=held) as scratch:
        yield scratch


@contextmanager
def scratch_folder(out: Path, *, delete_remains: bool = False) -> Iterator[Path]:
    """Make the folder of temporary files of this process and its child processes.

    ``TMPDIR`` in the environment is set to it, so that libraries and a site's own programs use it, too.

    Parameters
    ----------
    out : Path
        Output folder; it has to exist.
    delete_remains : bool
        Delete the files of killed runs. Only safe while `out` is locked: a process of another machine cannot be told
        from a killed one.

    Raises
    ------
    UserError
        The path is a link or a file.
    """
    home = out.absolute() / SCRATCH
    folder = home / f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"

    def delete() -> None:
        _delete(folder)
        with suppress(OSError):
            home.rmdir()

    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with closed_by(delete):
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
        if home.is_symlink() or not home.is_dir():
            raise UserError(
                f"{private(home)}: is a link or a file, expected a folder for temporary files. Move it away."
            )
        if delete_remains:
            _delete_remains(home)
        folder.mkdir(mode=0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before[1]
            if before[0] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[0]


def _delete(folder: Path) -> None:
    """Delete a folder, also while a program that is ending still writes to it."""
    give_up = time.monotonic() + 2
    while os.path.lexists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > give_up:
            return
        time.sleep(0.05)


def _delete_remains(home: Path) -> None:
    """Delete the folders of ended processes; folders with other kinds of names are left alone."""
    with os.scandir(home) as entries:
        for entry in entries:
            match = _OF_A_RUN.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False) and _started(int(match[1])) != int(match[2]):
                shutil.rmtree(entry.path, ignore_errors=True)


def _started(process: int) -> int | None:
    """Return the start of a process in clock ticks since boot; None if there is no such process.

    Process ids are reused; the pair of id and start is unique.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])
