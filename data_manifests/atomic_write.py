"""Files that are whole or not there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside `path`; rename it to `path` when all went well, delete it when not.

    The temporary name keeps the suffix, and starts with a dot so that no one takes it for a result. What processes that
    were killed left under such a name for the same `path` is deleted first: it may take much room.
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
    """The name under which this process writes what becomes `path`."""
    return path.with_name(f".{os.getpid()}-{path.name}")


def delete_remains(path: Path) -> None:
    """Delete what dead processes left of writing `path`; files of that name that are another user's stay."""
    ours = re.compile(rf"\.([0-9]{{1,9}})-{re.escape(path.name)}")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if (match := ours.fullmatch(entry.name)) is None:
                continue
            # Another process may be deleting it, too.
            with suppress(OSError):
                if (
                    entry.is_file(follow_symlinks=False)
                    and entry.stat().st_uid == os.geteuid()
                    and _dead(int(match[1]))
                ):
                    os.unlink(entry.path)


def _dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
