"""The temporary files of a run: in its output folder, in a folder of their own, deleted with the run's end.

Scans and masks in the system's temporary folder would stay there when a run is killed, and fill a disk that is small.
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

from ...data_manifests.errors import UserError
from .interruption import closed_by
from .lock import sole_user

SCRATCH = ".scratch"
_OF_A_RUN = re.compile(r"([0-9]+)-([0-9]+)-[0-9a-f]{8}")
"""Process, its start in clock ticks, and letters that no other user can foresee."""


@contextmanager
def at_work_in(out: Path) -> Iterator[Path]:
    """Hold an output folder (see `sole_user`), and lend a folder of temporary files in it.

    Raises
    ------
    UserError
        The folder cannot be held, or something that is no folder stands where the temporary files go.
    """
    with sole_user(out) as held, scratch_folder(out, delete_remains=held) as scratch:
        yield scratch


@contextmanager
def scratch_folder(out: Path, *, delete_remains: bool = False) -> Iterator[Path]:
    """Make the folder in which this process, and all that it starts meanwhile, keep their temporary files.

    It is named as ``TMPDIR`` in the environment, so that libraries and a site's own programs use it, too.

    Parameters
    ----------
    out : Path
        There has to be such a folder.
    delete_remains : bool
        Delete what runs that were killed have left here. Only while nothing else can be at work in `out`: a process of
        another machine looks as dead as a killed one.

    Raises
    ------
    UserError
        Something that is no folder stands in its place.
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
                f"{home}: is a link or a file, expected no such thing or a folder: temporary files go there. Move it "
                "away."
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
    """Delete a folder although a program that is just ending may still write to it."""
    give_up = time.monotonic() + 2
    while os.path.lexists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > give_up:
            return
        time.sleep(0.05)


def _delete_remains(home: Path) -> None:
    """Delete the folders of processes that live no more; what bears another kind of name is not ours."""
    with os.scandir(home) as entries:
        for entry in entries:
            match = _OF_A_RUN.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False) and _started(int(match[1])) != int(match[2]):
                shutil.rmtree(entry.path, ignore_errors=True)


def _started(process: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; None where there is none.

    A number of a process is given again; together with its start it is not.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])
