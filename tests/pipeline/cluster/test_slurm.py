"""Calls in jobs of a real SLURM: refusals, deaths, time limits. `make test-slurm` runs them, where it is installed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import MachineError, UserError, for_terminal
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cluster import queue_cluster
from voxout.pipeline.cluster.queue_cluster import QueueCluster
from voxout.pipeline.cluster.queue_systems import Queue
from voxout.pipeline.config.cluster_settings import ClusterSettings
from voxout.pipeline.workflow.engine import Engine

from .local_slurm import is_possible, local_slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="needs root and SLURM (slurmctld, slurmd, slurm-client, munge)"),
]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    with local_slurm(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setattr(queue_cluster, "POLL_S", 0.5)
        patch.setattr(queue_cluster, "_LISTED_AFTER_S", 3.0)
        yield


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.glob("voxout-*")) == [], "keys and logs are deleted"


def _subjects(n):
    return [SubjectRecord(subject_id=f"{i:02d}", group="control", images={}) for i in range(n)]


def _engine(**settings):
    values = {"memory_gb": 1, "time": "0:10:00", "drain_minutes": 1} | settings
    return Engine(1, start_cluster=lambda: QueueCluster(Queue("slurm", ClusterSettings(**values))))


def _jobs():
    listed = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "COMPLETING" not in line]


def _wait_for_no_jobs():
    give_up = time.monotonic() + 30
    while _jobs():
        assert time.monotonic() < give_up, _jobs()
        time.sleep(0.2)


def test_calls_are_executed_in_jobs_and_a_crash_is_one_failure(scratch):
    def task(subject):
        import os
        import signal
        import time

        number = int(subject.subject_id)
        if number == 1:
            raise ValueError("a bug")
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(0.3)
        return os.environ["SLURM_JOB_ID"], os.environ["OMP_NUM_THREADS"], os.environ["TMPDIR"]

    messages = []
    with _engine(jobs=2) as engine:
        outcome = engine.map(
            task, [(s,) for s in _subjects(8)], stage="prepare", say=lambda text, **facts: messages.append(text)
        )
        keys = next(scratch.glob("voxout-*/keys"))
        assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert set(outcome.results) == {f"sub-{i:02d}" for i in (0, 3, 4, 5, 6, 7)}
    jobs, threads, folders = (set(values) for values in zip(*outcome.results.values(), strict=True))
    assert len(jobs) <= 2 and threads == {"1"} and all(Path(f).parent == scratch for f in folders)
    reasons = {failure.key: failure.reason for failure in outcome.failures}
    assert set(reasons) == {"sub-01", "sub-02"}
    assert "ValueError" in reasons["sub-01"] and "died twice (last by SIGSEGV)" in reasons["sub-02"]
    assert any("replaced" in message for message in messages)
    _wait_for_no_jobs()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "none"}, "invalid partition specified: none"),
        ({"memory_gb": 5000}, "Memory specification can not be satisfied"),
        ({"directives": ["--gres=gpu:7"]}, "Requested node configuration is not available"),
        ({"directives": ["--no-such-option"]}, "unrecognized option"),
    ],
)
def test_a_refused_job_is_told_in_the_words_of_slurm(settings, words):
    began = time.monotonic()
    with _engine(**settings) as engine, pytest.raises(UserError, match="sbatch refused a job") as caught:
        engine.map(str, [(s,) for s in _subjects(2)], stage="prepare")
    assert words in for_terminal(str(caught.value)) and time.monotonic() - began < 20


def test_no_worker_in_time(monkeypatch):
    """The partition allows one minute: the job waits for ever."""
    messages = []
    with (
        _engine(partition="short", wait_minutes=0.05) as engine,
        pytest.raises(MachineError, match=r"no worker came in 0\.05 minutes \(PENDING \(PartitionTimeLimit\)\)"),
    ):
        engine.map(str, [(s,) for s in _subjects(1)], stage="prepare", say=lambda text, **facts: messages.append(text))
    # SLURM may name another reason before this one.
    assert messages[-1] == "    jobs in the queue: PENDING (PartitionTimeLimit)"
    _wait_for_no_jobs()


def test_jobs_that_end_at_once():
    with (
        _engine(prologue=["echo no such module >&2; exit 3"], jobs=1) as engine,
        pytest.raises(MachineError, match=r"3 jobs ended before their workers were ready \(.*no such module"),
    ):
        engine.map(str, [(s,) for s in _subjects(1)], stage="prepare")


def test_a_cancelled_job_is_followed_by_another():
    def task(subject, folder):
        import os
        import subprocess
        import time
        from pathlib import Path

        first = Path(folder) / "first"
        if not first.exists():
            first.touch()
            subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
            time.sleep(60)
        return os.environ["SLURM_JOB_ID"]

    with _engine(jobs=1) as engine:
        folder = os.environ["SLURM_CONF"].rpartition("/")[0]
        outcome = engine.map(task, [(s, folder) for s in _subjects(3)], stage="prepare")
    assert outcome.failures == () and len(set(outcome.results.values())) == 1


def test_no_call_is_cut_off_by_the_time_limit(tmp_path):
    """Jobs of 20 s that begin no call after 8 s; each call takes 4 s."""

    def task(subject, folder):
        import os
        import time
        from pathlib import Path

        with (Path(folder) / f"begun-{subject.key}").open("a") as file:
            file.write("x")
        time.sleep(4)
        return os.environ["SLURM_JOB_ID"]

    messages = []
    with _engine(jobs=1, time="0:00:20", drain_minutes=0.2) as engine:
        outcome = engine.map(
            task,
            [(s, str(tmp_path)) for s in _subjects(5)],
            stage="prepare",
            say=lambda text, **facts: messages.append(text),
        )
    assert outcome.failures == () and len(outcome.results) == 5
    assert {file.read_text() for file in tmp_path.glob("begun-*")} == {"x"}, "each was begun once"
    assert len(set(outcome.results.values())) >= 2 and not any("replaced" in text for text in messages)


def test_each_worker_has_a_gpu_of_its_own():
    def task(subject):
        import os
        import time

        time.sleep(1)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with _engine(jobs=1, cores=2, gpus=2) as engine:
        outcome = engine.map(task, [(s,) for s in _subjects(4)], stage="map")
    assert set(outcome.results.values()) == {"0", "1"}


@pytest.mark.parametrize(("here", "of_jobs"), [(0o077, "000"), (0o022, "077")])
def test_files_that_jobs_write_follow_the_umask_of_the_command(tmp_path, here, of_jobs):
    """That of the jobs is another one: a site may set it."""

    def write(subject, folder):
        from pathlib import Path

        (Path(folder) / subject.key).mkdir()
        (Path(folder) / subject.key / "map").write_text("")

    before = os.umask(here)
    try:
        with _engine(jobs=1, prologue=[f"umask {of_jobs}"]) as engine:
            outcome = engine.map(write, [(s, str(tmp_path)) for s in _subjects(2)], stage="prepare")
    finally:
        os.umask(before)
    assert outcome.failures == ()
    for subject in _subjects(2):
        folder = tmp_path / subject.key
        modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "map")]
        assert modes == [0o777 & ~here, 0o666 & ~here]


PROGRAM = """
import sys
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline.cluster.queue_cluster import QueueCluster
from voxout.pipeline.cluster.queue_systems import Queue
from voxout.pipeline.config.cluster_settings import ClusterSettings
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.interruption import Interrupted, interruptible

def sleep(subject):
    import time
    time.sleep(300)

subject = SubjectRecord("01", "control", {})
settings = ClusterSettings(memory_gb=1, time="0:30:00", jobs=1)
try:
    with interruptible(print), Engine(1, start_cluster=lambda: QueueCluster(Queue("slurm", settings))) as engine:
        engine.map(sleep, [(subject,)], stage="prepare")
except Interrupted as stop:
    sys.exit(128 + stop.number)
"""


@pytest.mark.parametrize(("number", "code", "limit_s"), [(signal.SIGTERM, 143, 20), (signal.SIGKILL, -9, 120)])
def test_no_job_is_left_by_a_run_that_was_stopped(tmp_path, number, code, limit_s):
    place = tmp_path / "own"
    place.mkdir()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=os.environ | {"TMPDIR": str(place)}) as program:
        give_up = time.monotonic() + 120
        while not any("ready" in file.read_text() for file in place.glob("voxout-*/voxout-*/*.txt")):
            assert time.monotonic() < give_up
            time.sleep(0.2)
        began = time.monotonic()
        program.send_signal(number)
        assert program.wait(30) == code
        while _jobs():
            assert time.monotonic() - began < limit_s, _jobs()
            time.sleep(0.2)
    assert number == signal.SIGKILL or not list(place.glob("voxout-*")), "keys and logs are deleted"


@pytest.mark.parametrize("umask", ["077", "022"])
def test_a_command_prepares_its_subjects_in_jobs_with_its_own_umask(tmp_path, umask):
    """That of the jobs, which a site may set, is another one."""
    cohort, out = small_cohort(tmp_path / "cohort", controls=4, patients=0, seed=1), tmp_path / "out"
    other = {"077": "000", "022": "077"}[umask]
    (tmp_path / "site.yaml").write_text(f"cluster: {{memory_gb: 3, jobs: 1, prologue: [umask {other}]}}\n")
    where = ["--cluster", "slurm", "--config", tmp_path / "site.yaml"]
    coarse = ["preprocessing.spacing_mm=4", "preprocessing.registration.transform=affine"]
    settings = [word for setting in coarse for word in ("--set", setting)]
    voxout = [sys.executable, "-m", "voxout.pipeline.cli"]
    for command in (["check", cohort, out, "--preset", "fast", *settings], ["prepare", cohort, out, *where]):
        done = subprocess.run(
            [*voxout, *map(str, command)], capture_output=True, text=True, check=False, umask=int(umask, 8)
        )
        assert done.returncode == 0, done.stderr + done.stdout
    shown = subprocess.run([*voxout, "status", str(out)], capture_output=True, text=True, check=True).stdout
    assert "prepare: 4 done of 4" in shown
    saved = (out / "config.yaml").read_text()
    assert not (out / ".scratch").exists() and "\ncluster:" not in saved and "spacing_mm: 4" in saved
    found = {path: path.stat().st_mode & 0o077 for path in out.rglob("*")}
    if umask == "077":
        assert not any(found.values()), found
    else:
        prepared = [mode for path, mode in found.items() if path.is_file() and path.is_relative_to(out / "prepared")]
        assert len(prepared) > 20 and set(prepared) == {0o044}
