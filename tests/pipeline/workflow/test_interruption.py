"""A command that is asked to end does so within ten seconds, leaves nothing behind, and says so."""

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
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # compiled, and deaf to signals

def hear_nothing():
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

def stumble():
    import time
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise OSError(5, "what comes of an interruption")

class Deleted:
    def __del__(self):
        wait()

def lose_it_while_deleting():
    Deleted()
    import time
    time.sleep(60)

try:
    with interruptible(lambda number: say("told by force")):
        with scratch_folder(Path(sys.argv[2])) as scratch:
            (scratch / "head.nii").write_text("a head")
            subprocess.Popen(["sleep", "300"], stderr=subprocess.DEVNULL)
            Path(sys.argv[2], "started").touch()
            globals()[sys.argv[1]]()
except KeyboardInterrupt as stop:
    say("told")
    sys.exit(128 + stop.number)
"""


class _Started:
    """A command under way, from its start until nothing of it is left."""

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
        """Its exit code and words after signals, a moment apart."""
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


def _nothing_is_left(folder: Path) -> bool:
    return not (folder / ".scratch").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_is_closed_on_the_way_out(tmp_path, number):
    with _started("wait", tmp_path) as run:
        assert run.end(number) == (128 + number, "closing\nclosed\ntold\n")
        assert _nothing_is_left(tmp_path)


def test_a_second_signal_changes_nothing(tmp_path):
    with _started("wait", tmp_path) as run:
        assert run.end(signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == (143, "closing\nclosed\ntold\n")
        assert _nothing_is_left(tmp_path)


@pytest.mark.parametrize("what", ["compute_without_end", "hear_nothing", "lose_it_while_deleting"])
def test_what_cannot_be_interrupted_is_ended_by_force_with_its_children(tmp_path, what):
    with _started(what, tmp_path) as run:
        code, messages = run.end(signal.SIGTERM)
        assert code == 143 and messages.splitlines()[-1] == "told by force" and "Traceback" not in messages
        assert _nothing_is_left(tmp_path) and not marked(run.mark)


def test_what_comes_of_an_interruption_is_one(tmp_path):
    with _started("stumble", tmp_path) as run:
        assert run.end(signal.SIGINT) == (130, "told\n")


def test_a_signal_that_was_ignored_from_the_start_stays_so(tmp_path):
    """As with nohup."""
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with _started("wait", tmp_path, **ignore) as run:
        assert run.end(signal.SIGHUP, signal.SIGTERM) == (143, "closing\nclosed\ntold\n")


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
    assert wait_until(lambda: len(list((out / ".scratch").rglob("*.started"))) == 2, 120), "two programs are at work"
    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sites_program_ends_with_the_run_that_started_it(cohort, tmp_path, number, code):
    out = tmp_path / "out"
    with _prepare(cohort, out, stderr=subprocess.PIPE) as run:
        ended, messages = run.end(number)
        assert ended == code
        assert wait_until(lambda: not marked(run.mark)), marked(run.mark)
        if number != signal.SIGKILL:
            name = signal.Signals(number).name
            assert messages == f"voxout: interrupted ({name}). The same command goes on from here.\n"
            line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
            assert (line["message"], line["signal"]) == ("interrupted", name)
            assert not (out / ".scratch").exists()


def test_ctrl_c_in_a_terminal_prints_one_line(cohort, tmp_path):
    """Every process of the terminal's group hears of it."""
    with _prepare(cohort, tmp_path / "out", stderr=subprocess.PIPE) as run:
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == (130, "voxout: interrupted (SIGINT). The same command goes on from here.\n")
        assert wait_until(lambda: not marked(run.mark)), marked(run.mark)


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
