"""Execution of a site's program whose processes end with the calling process.

The program and its descendants are ended on timeout, when the wait is interrupted, and when the calling process dies,
even by SIGKILL (see `guardian`). Work handed to a service that is already running, such as a container daemon or a
scheduler, is not ended. If the guardian is killed too, only the program itself ends with it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_GUARDIAN = Path(__file__).with_name("guardian.py")


def run_program(words: Sequence[str], *, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a program in a new session, without input.

    Parameters
    ----------
    words : sequence of str
        The program and its arguments.
    timeout_s : float
        The program is ended after this time.

    Returns
    -------
    CompletedProcess
        With its output; ``returncode`` is 128 plus the signal number if a signal ended it.

    Raises
    ------
    OSError
        The program cannot be started.
    subprocess.TimeoutExpired
    """
    caller_end, guardian_end = socket.socketpair()
    with caller_end:
        with guardian_end:
            guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARDIAN), str(guardian_end.fileno()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[guardian_end.fileno()],
                start_new_session=True,
            )
        with guardian:
            try:
                out, err = guardian.communicate(timeout=timeout_s)
            except BaseException:
                caller_end.close()
                raise
        if number := caller_end.recv(16):
            raise OSError(int(number), os.strerror(int(number)))
    return subprocess.CompletedProcess(list(words), guardian.returncode, out, err)
