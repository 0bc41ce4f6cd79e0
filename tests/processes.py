"""Processes that a test starts, identified by an environment variable."""

import os
import time
from collections.abc import Callable
from pathlib import Path

MARK = "VOXOUT_TEST_MARK"


def marked(mark: str) -> dict[int, str]:
    """Return the command lines of other processes with this value of `MARK`, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    found.pop(os.getpid(), None)
    return found


def wait_until(true: Callable[[], object], seconds: float = 10) -> bool:
    """Wait until a condition is true; return whether it became true in time."""
    give_up = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True
