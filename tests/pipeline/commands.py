"""Commands of voxout, given within the test process or to a process of their own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

from voxout.pipeline.cli.main import main

# With small convolutions on a busy machine, several threads are slower than one; they also round differently.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command_line(*words: object) -> list[str]:
    """Return the command line of a separate process."""
    return [sys.executable, "-m", "voxout.pipeline.cli", *map(str, words)]


def in_process(*words: object) -> subprocess.CompletedProcess[str]:
    """Give a command within this process; see the fixture `warm_workers`."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        code = main([str(word) for word in words])
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def as_process(*words: object) -> subprocess.CompletedProcess[str]:
    """Give a command to a process of its own."""
    return subprocess.run(command_line(*words), capture_output=True, text=True, check=False, env=ONE_THREAD)


def told(*words: object) -> tuple[int, str]:
    """Give a command within this process; return its exit code, and all that it prints."""
    done = in_process(*words)
    return done.returncode, done.stdout + done.stderr
