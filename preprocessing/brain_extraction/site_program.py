"""Runs a program of the site so that nothing of it outlives the process that wants it.

The program and all that it starts are ended when it takes too long, when the wait for it is interrupted, and when the
waiting process dies, even by SIGKILL (see `guardian`). Work that it hands to a service that runs already, as to a
container daemon or a scheduler, is not among what it starts; and if the guardian is killed as well, only the program
itself ends with it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_GUARDIAN = Path(__file__).with_name("guardian.py")


def run_program(words: Sequence[str], *, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a program in a session of its own, without input.

    Parameters
    ----------
    words : sequence of str
        The program and its arguments.
    timeout_s : float
        It is ended after this long.

    Returns
    -------
    CompletedProcess
        With all that it wrote; ``returncode`` is 128 and more where a signal ended it.

    Raises
    ------
    OSError
        It cannot be started.
    subprocess.TimeoutExpired
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARDIAN), str(theirs.fileno()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        with guardian:
            try:
                out, err = guardian.communicate(timeout=timeout_s)
            except BaseException:
                ours.close()
                raise
        if number := ours.recv(16):
            raise OSError(int(number), os.strerror(int(number)))
    return subprocess.CompletedProcess(list(words), guardian.returncode, out, err)
