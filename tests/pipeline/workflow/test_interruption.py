"""An interrupted command ends within ten seconds, leaves no processes or files, and prints a message."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.synthetic.phantoms import small_cohort

from ...processes import MARK, marked, wait_until

PROGRAM = """
import os, subprocess, sys
from functools import partial
from pathlib import Path
from voxout.pipeline.workflow.interruption import interruptible
from voxout.pipeline.workflow.scratch import scratch_folder

def say(text):
    print(text, file=sys.stderr, flush=True)

def compute_without_end():
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # compiled code that delays signal handlers

def ignore_interruptions():
    import time
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

def wait():
    import time
    try:
        time.sleep(60)
    finally:
        say("closing")
        time.sleep(1)
        say("closed")

def fail_after_interruption():
    import time
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise OSError(5, "caused by the interruption")

def import_a_library():
    import time
    module = "import sys, time; time.sleep(3); print('imported', file=sys.stderr, flush=True)"
    Path(sys.argv[2], "library.py").write_text(module)
    sys.path.insert(0, sys.argv[2])
    import library
    time.sleep(60)

class Deleted:
    def __del__(self):
        wait()

def interrupted_while_deleting():
    Deleted()
    import time
    time.sleep(60)

try:
    with interruptible(lambda number: say("killed")):
        with scratch_folder(Path(sys.argv[2])) as scratch:
            (scratch / "head.nii").write_text("a head")
            subprocess.Popen(["sleep", "300"], stderr=subprocess.DEVNULL)
            Path(sys.argv[2], "started").touch()
            globals()[sys.argv[1]]()
except KeyboardInterrupt as stop:
    say("interrupted")
    sys.exit(128 + stop.number)
"""


class _Started:
    """A running command, whose processes are all killed in the end."""

    def __init__(self, command, **options):
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        environment = os.environ | {MARK: self.mark}
        self.process = subprocess.Popen(command, **options, env=environment, text=True, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in marked(self.mark):
            os.kill(process, signal.SIGKILL)
        self.process.communicate()

    def end(self, *numbers: int) -> tuple[int, str]:
        """Send signals, 0.3 s apart; return the exit code and the messages."""
        began = time.monotonic()
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.3)
        messages = self.process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 10
        return self.process.returncode, messages


def _started(what: str, folder: Path, **options) -> _Started:
    run = _Started([sys.executable, "-c", PROGRAM, what, str(folder)], stderr=subprocess.PIPE, **options)
    assert wait_until((folder / "started").exists, 60)
    time.sleep(0.5)
    return run


def _no_temporary_files(folder: Path) -> bool:
    return not (folder / ".scratch").exists()


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_resources_are_closed_after_a_signal(tmp_path, number):
    with _started("wait", tmp_path) as run:
        assert run.end(number) == (128 + number, "closing\nclosed\ninterrupted\n")
        assert _no_temporary_files(tmp_path)


def test_a_second_signal_has_no_effect(tmp_path):
    with _started("wait", tmp_path) as run:
        assert run.end(signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == (143, "closing\nclosed\ninterrupted\n")
        assert _no_temporary_files(tmp_path)


@pytest.mark.parametrize(
    "what",
    [
        "compute_without_end",
        pytest.param("ignore_interruptions", marks=pytest.mark.slow),
        pytest.param("interrupted_while_deleting", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_does_not_react_is_killed_with_its_children(tmp_path, what):
    with _started(what, tmp_path) as run:
        code, messages = run.end(signal.SIGTERM)
        assert code == 143 and messages.splitlines()[-1] == "killed" and "Traceback" not in messages
        assert _no_temporary_files(tmp_path) and not marked(run.mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("closed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_signal_during_the_start_prints_one_line(tmp_path, number, closed):
    """Regression: in the first half second, during imports, Ctrl-C printed a traceback, and SIGTERM nothing."""
    program = tmp_path / "slow.py"
    # The first module that the entry imports waits, as on a slow disk.
    code = (
        "import sys, time, voxout.pipeline.cli.entry as entry\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'voxout.pipeline.cli.main':\n"
        "            print('importing', flush=True)\n"
        "            try: time.sleep(30)\n"
        "            except OSError: time.sleep(30)  # as libraries do\n"
        "sys.meta_path.insert(0, Slow())\n"
        "entry.start()\n"
    )
    program.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    if closed:
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        return
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    name = signal.Signals(number).name
    assert errors == f"voxout: interrupted ({name}). Run the same command again to continue.\n"
    assert process.returncode == 128 + number


def test_a_signal_during_an_import_takes_effect_after_it(tmp_path):
    """An exception within the import of a compiled library aborted the process once in hundreds of signals."""
    with _started("import_a_library", tmp_path) as run:
        assert run.end(signal.SIGTERM) == (143, "imported\ninterrupted\n")


def test_an_error_caused_by_an_interruption_is_an_interruption(tmp_path):
    with _started("fail_after_interruption", tmp_path) as run:
        assert run.end(signal.SIGINT) == (130, "interrupted\n")


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(tmp_path):
    """As with nohup."""
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with _started("wait", tmp_path, **ignore) as run:
        assert run.end(signal.SIGHUP, signal.SIGTERM) == (143, "closing\nclosed\ninterrupted\n")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    path = small_cohort(folder, controls=4, patients=0, seed=1)
    manifest = read_manifest(path)
    write_manifest(path, Manifest(tuple(replace(record, brain_mask=None) for record in manifest)))
    (folder / "slow.sh").write_text("#!/bin/sh\nsetsid sleep 301 &\ntouch $1.started\nsleep 302\n")
    (folder / "slow.sh").chmod(0o700)
    return path


def _prepare(cohort: Path, out: Path, **options) -> _Started:
    program = cohort.parent / "slow.sh"
    method = "preprocessing.brain_extraction.method=command"
    command = f"preprocessing.brain_extraction.command={program} {{image}} {{mask}}"
    voxout = [sys.executable, "-m", "voxout.pipeline.cli"]
    settings = ["--preset", "fast", "--jobs", "2", "--set", method, "--set", command]
    assert subprocess.run([*voxout, "check", str(cohort), str(out), *settings], capture_output=True).returncode == 0
    run = _Started([*voxout, "prepare", str(cohort), str(out), *settings], **options)
    assert wait_until(lambda: len(list((out / ".scratch").rglob("*.started"))) == 2, 120), "two programs are running"
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sites_program_ends_with_the_run_that_started_it(cohort, tmp_path, number, code):
    out = tmp_path / "out"
    with _prepare(cohort, out, stderr=subprocess.PIPE) as run:
        ended, messages = run.end(number)
        assert ended == code
        assert wait_until(lambda: not marked(run.mark)), marked(run.mark)
        if number != signal.SIGKILL:
            name = signal.Signals(number).name
            assert messages == f"voxout: interrupted ({name}). Run the same command again to continue.\n"
            line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
            assert (line["message"], line["signal"]) == ("interrupted", name)
            assert not (out / ".scratch").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_prints_one_line(cohort, tmp_path):
    """All processes of the terminal's group receive the signal."""
    with _prepare(cohort, tmp_path / "out", stderr=subprocess.PIPE) as run:
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == (130, "voxout: interrupted (SIGINT). Run the same command again to continue.\n")
        assert wait_until(lambda: not marked(run.mark)), marked(run.mark)


@pytest.mark.slow
def test_a_closed_terminal_ends_the_run(cohort, tmp_path):
    ours, theirs = pty.openpty()
    out = tmp_path / "out"
    with _prepare(cohort, out, stdin=theirs, stdout=theirs, stderr=theirs) as run:
        os.close(theirs)
        os.close(ours)
        os.killpg(run.process.pid, signal.SIGHUP)
        assert run.process.wait(10) == 129
        assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["signal"] == "SIGHUP"
        assert not (out / ".scratch").exists()
        assert wait_until(lambda: not marked(run.mark)), marked(run.mark)
