"""The script of `voxout run --requeue`, with stand-ins for SLURM and for the run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from voxout.pipeline.cli.main import main

pytest.importorskip("dask_jobqueue")


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script of a job of 10 minutes; `sbatch` writes what it is given."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$VOXOUT_ROUND $*" >>{tmp_path}/submitted\n')
    sbatch.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "cluster.time=0:10:00", "--set", "cluster.drain_minutes=1", "--set", "cluster.gpus=1"]
    assert main(["run", "a cohort.csv", "out", "--requeue", *settings]) == 0
    return tmp_path / "out" / "requeue.sbatch"


def _given(script, run, *, seconds, send=None):
    """Execute the script with another program in place of voxout; return its exit code and what it submitted."""
    text = script.read_text().replace(f"{sys.executable} -m voxout.pipeline.cli", run)
    environment = os.environ | {"SECONDS": str(seconds)}
    with subprocess.Popen(["bash", "-c", text], env=environment, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stdout.readline() == "begun\n"
        if send is not None:
            time.sleep(0.2)
            job.send_signal(send)
        code = job.wait(20)
    submitted = script.parents[1] / "submitted"
    return code, submitted.read_text().split() if submitted.exists() else []


# As voxout does: it needs a moment to end, with 143.
_STOPPED = "bash -c 'trap \"sleep 0.5; exit 143\" TERM; echo begun; while true; do sleep 0.1; done'"


def test_the_job_asks_for_what_the_settings_say_and_gives_the_same_command(script):
    lines = script.read_text().splitlines()
    assert {"#SBATCH --signal=B:TERM@120", "#SBATCH -t 0:10:00", "#SBATCH --gres=gpu:1"} <= set(lines)
    (command,) = [line for line in lines if line.endswith(" &")]
    assert "run 'a cohort.csv' out --set cluster.time=0:10:00" in command and "--requeue" not in command


def test_after_the_time_limit_it_submits_itself(script):
    code, submitted = _given(script, _STOPPED, seconds=500, send=signal.SIGTERM)
    assert (code, submitted) == (143, ["2", str(script)])


@pytest.mark.parametrize(
    ("run", "seconds", "send", "code"),
    [
        (_STOPPED, 100, signal.SIGTERM, 143),  # scancel
        ("bash -c 'echo begun; exit 0'", 500, None, 0),
        ("bash -c 'echo begun; exit 3'", 500, None, 3),
        ("bash -c 'echo begun; kill -KILL $$'", 500, None, 137),
    ],
)
def test_otherwise_it_does_not(script, run, seconds, send, code):
    assert _given(script, run, seconds=seconds, send=send) == (code, [])


def test_the_number_of_jobs_is_limited(script, monkeypatch):
    monkeypatch.setenv("VOXOUT_ROUND", "50")
    assert _given(script, _STOPPED, seconds=500, send=signal.SIGTERM) == (143, [])
