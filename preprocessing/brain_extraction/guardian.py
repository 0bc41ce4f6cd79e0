"""Supervisor script: runs a program, and ends it and its descendants when the calling process ends.

``python guardian.py DESCRIPTOR PROGRAM [ARGUMENT ...]``

The descriptor is one end of a socket pair. The calling process holds the other end, which closes when that process
ends for any reason. If the program cannot be started, the error number is sent through the socket.

Only the standard library is imported, so that the script starts within a few hundredths of a second.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE_S = 2.0
"""Time between SIGTERM and SIGKILL, for example for a container client to stop its container."""


def main(descriptor: int, words: list[str]) -> int:
    """Run the program and return its exit code; 128 plus the signal number if a signal ended it."""
    prctl = ctypes.CDLL(None).prctl
    # Orphaned descendants of the program become children of this process, whatever their session.
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: _leave(128 + number))
    lifeline = socket.socket(fileno=descriptor)
    try:
        program = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            # If this process is killed, the program itself is killed too.
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        lifeline.sendall(str(error.errno).encode())
        return 127
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    code = program.wait()
    _end_descendants()
    return code if code >= 0 else 128 - code


def _leave_with(lifeline: socket.socket) -> None:
    with suppress(OSError):
        while lifeline.recv(1):
            pass
    _leave(1)


def _leave(code: int) -> None:
    _end_descendants()
    os._exit(code)


def _end_descendants() -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        give_up = time.monotonic() + _GRACE_S
        signalled: set[int] = set()
        while (alive := _descendants()) and time.monotonic() < give_up:
            for process in alive - signalled:
                with suppress(OSError):
                    os.kill(process, number)
            signalled |= alive
            time.sleep(0.02)


def _descendants() -> set[int]:
    """Process ids of the running descendants of this process."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The program name, in parentheses, may contain any characters.
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                parents[int(name)] = int(parent)
    found = [os.getpid()]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return set(found[1:])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
