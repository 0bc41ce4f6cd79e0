"""Atomic writing of files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, delete it on failure.

    The temporary name keeps the suffix and starts with a dot. Temporary files that killed processes left for the same
    `path` are deleted first, because they may be large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_remains(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return the temporary path that this process uses while it writes `path`."""
    return path.with_name(f".{os.getpid()}-{path.name}")


def delete_remains(path: Path) -> None:
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
