"""A cluster that cannot start, or is interrupted during its start, gives a message and leaves no process."""

import asyncio
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from voxout.data_manifests.errors import MachineError
from voxout.pipeline.cluster import local_cluster

PROGRAM = Path(__file__).with_name("engine_program.py")


def _command(*arguments):
    return [sys.executable, str(PROGRAM), *map(str, arguments)]


def _workers_of(process):
    """Return the worker processes started by a process, also if it has ended."""
    found = []
    for other in psutil.process_iter(["cmdline", "status"]):
        words = other.info["cmdline"] or []
        at_work = "voxout.pipeline.cluster.worker_process" in words and words[-1] == str(process)
        if at_work and other.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(other)
    return found


def _wait_for(condition, limit_s=30.0):
    give_up = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < give_up, "timeout"
        time.sleep(0.02)
    return value


def _limited(which, limit):
    return lambda: resource.setrlimit(which, (limit, limit))


@pytest.mark.parametrize(
    ("which", "limit", "words"),
    [
        (resource.RLIMIT_NOFILE, 32, "32 files may be open at once .* expected 76 or more for 2 jobs"),
        (resource.RLIMIT_AS, 150_000_000, r"0\.15 GB of address space .* expected 1 GB or more"),
    ],
)
def test_a_limit_of_the_machine_gives_one_message(tmp_path, which, limit, words):
    began = time.monotonic()
    done = subprocess.run(
        _command(2, 0, 2, 60, tmp_path),
        preexec_fn=_limited(which, limit),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - began < 60
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_soft_limit_is_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = subprocess.run(
        _command(1, 0, 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.parametrize(
    "program",
    [
        "sys.exit('no library')",
        pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.slow),
        pytest.param(
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (40_000_000,) * 2)", marks=pytest.mark.slow
        ),
    ],
)
def test_workers_that_exit_at_once_are_retried_and_then_reported(tmp_path, program):
    """A sitecustomize module on PYTHONPATH ends every worker at its start."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nif 'voxout.pipeline.cluster.worker_process' in sys.orig_argv:\n"
        f"    open({str(tmp_path / 'tried')!r}, 'a').write('x')\n    {program}\n"
    )
    done = subprocess.run(
        _command(2, 0, 2),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "the worker processes cannot be started" in done.stderr
    assert any(reason in done.stderr for reason in ("no library", "SIGKILL", "Memory", "memory"))
    assert 4 <= len((tmp_path / "tried").read_text()) <= 8


def test_the_wait_for_workers_is_limited(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'voxout.pipeline.cluster.worker_process' in sys.orig_argv:\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local_cluster, "START_LIMIT_S", 3.0)
    before = _workers_of(os.getpid())  # those of other tests' engines
    with pytest.raises(MachineError, match="none was ready after 3 s"):
        local_cluster.LocalCluster(2)
    assert _workers_of(os.getpid()) == before


def test_a_connection_given_up_by_the_closed_cluster_is_not_logged(caplog):
    cluster = local_cluster.LocalCluster(1)
    given_up = asyncio.Future(loop=cluster.client.loop.asyncio_loop)
    cluster.close()
    given_up.set_exception(TimeoutError("Timeout"))
    del given_up
    gc.collect()
    assert caplog.records == []


def _unshared(*options):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs the superuser and unshare")
    return ["unshare", *options]


def test_a_machine_without_loopback():
    done = subprocess.run([*_unshared("-n"), *_command(1, 0, 1)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "expected the loopback interface to be up" in done.stderr


_CUT = """
ip link set lo up
"$@" | { read first; ip link set lo down; sleep SECONDS; ip link set lo up; cat; }
"""


@pytest.mark.parametrize("seconds", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_network_that_is_cut_while_calls_are_running(seconds):
    """Dask gives up after 30 s by default, after 12 s here; then every subject was named as a failure."""
    limit = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"} if seconds > 12 else {}
    done = subprocess.run(
        [*_unshared("-n"), "sh", "-c", _CUT.replace("SECONDS", str(seconds)), "sh", *_command(2, 0.5, 12)],
        env={**os.environ, **limit},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not limit:
        assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "12 done, 0 failed")
    else:
        assert "connection to the scheduler of the workers was lost" in done.stderr and "failed" not in done.stdout
        assert len(done.stderr.splitlines()) == 1


def test_full_shared_memory_does_no_harm():
    script = "mount -t tmpfs -o size=4k tmpfs /dev/shm; dd if=/dev/zero of=/dev/shm/x bs=4k count=1; exec " + " ".join(
        _command(1, 0, 1)
    )
    done = subprocess.run([*_unshared("-m"), "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 done, 0 failed")


def test_a_worker_killed_while_the_cluster_starts_is_replaced():
    with subprocess.Popen(_command(2, 0.1, 4), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        _wait_for(lambda: _workers_of(program.pid))[0].kill()
        out, err = program.communicate(timeout=120)
    assert out.splitlines()[-1] == "4 done, 0 failed" and err == ""


@pytest.mark.parametrize(
    "after_s", [0.6, 1.6, 2.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (1.2, 2.0, 3.5))]
)
def test_an_interruption_during_the_start_leaves_no_process(tmp_path, after_s):
    """Ctrl-C goes to all processes of the terminal; workers ignore it."""
    with subprocess.Popen(
        _command(2, 60, 2, 60, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        time.sleep(after_s)
        os.killpg(program.pid, signal.SIGINT)
        began = time.monotonic()
        _, err = program.communicate(timeout=60)
    assert time.monotonic() - began < 10
    if program.returncode == 130:  # otherwise it was still importing, where Ctrl-C has Python's default effect
        assert err == ""
    assert _workers_of(program.pid) == []
    assert list(tmp_path.iterdir()) == []


def test_workers_end_with_the_process_that_started_them():
    with subprocess.Popen(_command(2, 60, 2), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        _wait_for(lambda: len(_workers_of(program.pid)) == 2)
        program.kill()
        program.wait()
        _wait_for(lambda: not _workers_of(program.pid), 10)
        assert program.stderr is not None and program.stderr.read() == b""


@pytest.mark.slow
def test_workers_ignore_interruptions():
    with subprocess.Popen(_command(2, 2, 4), stdout=subprocess.PIPE, text=True) as program:
        workers = _wait_for(lambda: len(found := _workers_of(program.pid)) == 2 and found)
        for _ in range(50):  # from their start on
            for worker in workers:
                worker.send_signal(signal.SIGINT)
            time.sleep(0.05)
        out, _ = program.communicate(timeout=120)
    assert "replaced" not in out and out.splitlines()[-1] == "4 done, 0 failed"
