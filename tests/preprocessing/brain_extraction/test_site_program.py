"""A site's program and its descendants end with the calling process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from voxout.preprocessing.brain_extraction.site_program import run_program

from ...processes import MARK, marked, wait_until

# A program with two children: one orphaned in its own session, and one that ignores SIGTERM.
FORKING = """
import os, subprocess, sys, time
subprocess.Popen(["setsid", "sh", "-c", "sleep 300 & exit"])
subprocess.Popen(["sh", "-c", "trap '' TERM; while true; do sleep 1; done"])
open(sys.argv[1], "w").write("started")
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def mark(monkeypatch) -> str:
    """Environment variable that marks all processes started by the test."""
    value = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, value)
    return value


def _forking(started: Path, seconds: float = 300) -> list[str]:
    return [sys.executable, "-c", FORKING, str(started), str(seconds)]


def test_output_and_return_code():
    done = run_program(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=60)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert run_program(["sh", "-c", "kill -KILL $$"], timeout_s=60).returncode == 128 + signal.SIGKILL
    assert run_program(["cat"], timeout_s=60).stdout == "", "stdin is empty"


@pytest.mark.parametrize("program", ["/no/such/program", "/dev/null"])
def test_missing_program_raises(program):
    with pytest.raises(OSError) as caught:
        run_program([program], timeout_s=60)
    assert caught.value.strerror in ("No such file or directory", "Permission denied")


def test_orphaned_children_are_ended(mark, tmp_path):
    run_program(_forking(tmp_path / "started", 0), timeout_s=60)
    assert marked(mark) == {}


def test_timeout_ends_all_processes(mark, tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(_forking(tmp_path / "started"), timeout_s=2)
    assert (tmp_path / "started").exists() and marked(mark) == {}


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_death_of_the_caller_ends_all_processes(mark, tmp_path, number):
    script = f"""
        from voxout.preprocessing.brain_extraction.site_program import run_program
        run_program({_forking(tmp_path / "started")!r}, timeout_s=300)
    """
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    waiting = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], **silent)
    assert wait_until((tmp_path / "started").exists), "the program did not start"
    waiting.send_signal(number)
    waiting.wait(20)
    assert wait_until(lambda: not marked(mark)), marked(mark)


def test_killed_guardian_ends_the_program(mark, tmp_path):
    script = f"""
        from voxout.preprocessing.brain_extraction.site_program import run_program
        print(run_program(["sh", "-c", "touch {tmp_path}/started; exec sleep 300"], timeout_s=300).returncode)
    """
    waiting = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert wait_until((tmp_path / "started").exists)
    guardian = next(pid for pid, command in marked(mark).items() if "guardian.py" in command)
    os.kill(guardian, signal.SIGKILL)
    assert waiting.communicate(timeout=20)[0] == "-9\n"
    assert wait_until(lambda: not marked(mark)), marked(mark)
