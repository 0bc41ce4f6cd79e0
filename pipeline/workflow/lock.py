"""One run at a time in an output folder."""

import errno
import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...data_manifests.errors import UserError, for_terminal, private


def _to_stderr(text: str) -> None:
    print(f"voxout: {for_terminal(text)}", file=sys.stderr)


@contextmanager
def sole_user(folder: Path, warn: Callable[[str], None] = _to_stderr) -> Iterator[bool]:
    """Hold an output folder: two runs at once in one folder would each use what the other has half made.

    Parameters
    ----------
    folder : Path
    warn : callable
        Takes the sentence that is due where the file system knows no locks; the run goes on there.

    Yields
    ------
    bool
        Whether it is held indeed.

    Raises
    ------
    UserError
        Another process holds it, or it is not ours to write to.
    """
    try:
        file = (folder / ".lock").open("w")
    except PermissionError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: its lock file cannot be written ({error.strerror}): another "
            "user's run made it. Choose another output folder."
        ) from error
    with file:
        held = True
        try:
            # Let go by the system however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise UserError(
                    f"{private(folder, 'the output folder')}: another voxout is at work in this folder. Wait for it, "
                    "or choose another output folder."
                ) from error
            held = False
            warn(
                f"{private(folder, 'the output folder')}: its file system has no locks ({error.strerror}). Nothing "
                "keeps two runs apart here: start one at a time."
            )
        yield held
