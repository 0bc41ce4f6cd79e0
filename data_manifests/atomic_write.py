"""Atomic writing of files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .open_file import open_to_append


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, delete it on failure.

    See `make_temporary`.
    """
    temporary = make_temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_temporary(path: Path) -> Path:
    """Make the temporary file that this process uses while it writes `path`, and its folder.

    The temporary name keeps the suffix and starts with a dot. Temporary files that killed processes left for the same
    `path` are deleted first, because they may be large.

    Raises
    ------
    UserError
        The temporary path is a link, a pipe or a folder, through which another file would be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_remains(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    open_to_append(temporary).close()
    return temporary


def _delete_remains(path: Path) -> None:
    """Delete temporary files that dead processes of the current user left for `path`."""
    pattern = re.compile(rf"\.([0-9]{{1,9}})-{re.escape(path.name)}")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if (match := pattern.fullmatch(entry.name)) is None:
                continue
            # Another process may delete it at the same time.
            with suppress(OSError):
                if (
                    entry.is_file(follow_symlinks=False)
                    and entry.stat().st_uid == os.geteuid()
                    and _is_dead(int(match[1]))
                ):
                    os.unlink(entry.path)


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
