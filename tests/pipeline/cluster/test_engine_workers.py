"""Workers that die while a stage runs are replaced, with a message, and the run continues."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline.cluster import worker_pool
from voxout.pipeline.workflow.engine import Engine


def _subjects(n):
    return [SubjectRecord(subject_id=f"{i:02d}", group="control", images={}) for i in range(n)]


def _task():
    def process_after(subject, seconds):
        import os
        import time

        time.sleep(seconds)
        return os.getpid()

    return process_after


def _processes(engine):
    return {worker.process.pid for worker in engine._cluster.pool.workers if worker.process.poll() is None}


@pytest.fixture(scope="module")
def engine():
    with Engine(jobs=2) as engine:
        yield engine


def _map_and_disturb(engine, disturb, *, calls=6, seconds=1.0):
    """Return the outcome and the messages of calls during which ``disturb(processes)`` is called once."""
    calls = [(subject, seconds) for subject in _subjects(calls)]
    assert engine.map(_task(), calls[:2], stage="warm").failures == ()
    messages = []
    timer = threading.Timer(0.5, disturb, [sorted(_processes(engine))])
    timer.start()
    outcome = engine.map(_task(), calls, stage="prepare", say=lambda text, **facts: messages.append((text, facts)))
    timer.join()
    return outcome, messages


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGSEGV))],
)
def test_a_worker_that_is_killed(engine, number, capfd):
    outcome, messages = _map_and_disturb(engine, lambda processes: os.kill(processes[0], number))
    assert len(outcome.results) == 6 and outcome.failures == ()
    text = "    a worker stopped responding and was replaced; its subject is processed again"
    assert messages == [(text, {"stage": "prepare", "workers_replaced": 1})]
    _check_number_of_workers(engine)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_worker_that_is_stopped(engine, monkeypatch, capfd):
    monkeypatch.setattr(worker_pool, "STILL_LIMIT_S", 5.0)
    outcome, messages = _map_and_disturb(engine, lambda processes: os.kill(processes[0], signal.SIGSTOP), seconds=2.0)
    assert len(outcome.results) == 6 and outcome.failures == ()
    assert len(messages) == 1 and "was replaced" in messages[0][0]
    _check_number_of_workers(engine)
    assert capfd.readouterr() == ("", "")


def test_all_workers_at_once(engine, capfd):
    def kill_all(processes):
        for process in processes:
            os.kill(process, signal.SIGKILL)

    outcome, messages = _map_and_disturb(engine, kill_all)
    assert len(outcome.results) == 6 and outcome.failures == ()
    assert messages[-1][1]["workers_replaced"] == 2
    _check_number_of_workers(engine)
    assert capfd.readouterr() == ("", "")


def _check_number_of_workers(engine):
    """Check that the next calls use as many workers as before."""
    give_up = time.monotonic() + 60
    while len(set(engine.map(_task(), [(s, 0.3) for s in _subjects(4)], stage="test").results.values())) < 2:
        assert time.monotonic() < give_up
    assert len(_processes(engine)) == 2


@pytest.mark.slow
def test_a_worker_in_long_compiled_code_is_not_replaced(engine, monkeypatch):
    """Registration may hold Python's lock for minutes, without heartbeats or answers."""
    monkeypatch.setattr(worker_pool, "STILL_LIMIT_S", 3.0)

    def hold_the_lock(subject):
        import sys

        # No other Python thread can run.
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            total = 0
            import time

            end = time.monotonic() + 8
            while time.monotonic() < end:
                total += sum(range(200_000))
        finally:
            sys.setswitchinterval(before)
        return "done"

    messages = []
    outcome = engine.map(
        hold_the_lock, [(s,) for s in _subjects(2)], stage="test", say=lambda text, **facts: messages.append(text)
    )
    assert set(outcome.results.values()) == {"done"} and messages == []


@pytest.mark.slow
def test_a_suspended_machine_continues():
    """All processes are suspended for longer than the limit of a stopped worker; no worker is replaced."""
    program = Path(__file__).with_name("engine_program.py")
    with subprocess.Popen(
        [sys.executable, str(program), "2", "2", "6", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        # Either of the first two subjects may end first.
        assert running.stdout.readline().startswith("1 6 sub-0")
        os.killpg(running.pid, signal.SIGSTOP)
        time.sleep(12)
        os.killpg(running.pid, signal.SIGCONT)
        out, err = running.communicate(timeout=120)
    assert out.splitlines()[-1] == "6 done, 0 failed" and "replaced" not in out and err == ""


def test_a_result_lost_with_its_worker_is_computed_again(engine, tmp_path):
    """The worker holds the only copy of a result until it is fetched."""

    def return_and_die(subject, folder):
        import os
        import threading
        from pathlib import Path

        mark = Path(folder) / subject.key
        if not mark.exists():
            mark.touch()
            threading.Timer(int(subject.subject_id) / 1000, os._exit, [1]).start()
        return subject.key

    # One at a time, so that no other subject waits for the dying worker.
    for subject in _subjects(5):
        outcome = engine.map(return_and_die, [(subject, str(tmp_path))], stage="test")
        assert outcome.results == {subject.key: subject.key}
