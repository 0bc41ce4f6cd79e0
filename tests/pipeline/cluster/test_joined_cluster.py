"""A run with the workers of a Dask scheduler that somebody else keeps running."""

import pytest
from dask import config
from distributed import LocalCluster
from distributed.security import Security
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import MachineError, UserError
from voxout.pipeline.cluster import joined_cluster
from voxout.pipeline.cluster.joined_cluster import JoinedCluster
from voxout.pipeline.workflow.engine import Engine

SUBJECTS = [SubjectRecord(f"{number:02d}", "control", {}) for number in range(3)]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """A scheduler with TLS, whose keys Dask's configuration names."""
    folder, keys = tmp_path_factory.mktemp("keys"), Security.temporary()
    for name, text in (("cert", keys.tls_client_cert), ("key", keys.tls_client_key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    roles = ("client", "scheduler", "worker")
    own = {f"distributed.comm.tls.{role}.{part}": str(folder / part) for role in roles for part in ("key", "cert")}
    own["distributed.comm.tls.ca-file"] = str(folder / "cert")
    with (
        config.set(own | {"distributed.scheduler.http.routes": []}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            protocol="tls://",
            host="127.0.0.1",
            security=Security(),
        ) as cluster,
    ):
        yield cluster


def test_calls_are_executed_and_the_scheduler_stays(scheduler):
    def key_of(subject):
        return subject.key

    for _ in range(2):
        with Engine(1, start_cluster=lambda: JoinedCluster(scheduler.scheduler_address)) as engine:
            outcome = engine.map(key_of, [(subject,) for subject in SUBJECTS], stage="prepare")
        assert outcome.results == {subject.key: subject.key for subject in SUBJECTS}


def test_another_version_is_refused(scheduler, monkeypatch):
    answers = iter(["0.0.9", "0.1.0", "0.1.0", "0.1.0"])
    monkeypatch.setattr(joined_cluster.metadata, "version", lambda name: next(answers))
    with pytest.raises(UserError, match=r"its workers have voxout 0\.0\.9, expected 0\.1\.0"):
        JoinedCluster(scheduler.scheduler_address)


@pytest.mark.parametrize("address", ["node7", "http://node7:8786", "tls://node7", "tls://node7:port"])
def test_what_is_no_address(address):
    with pytest.raises(UserError, match="expected one such as tls://node7:8786"):
        JoinedCluster(address)


def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(joined_cluster, "_CONNECT_LIMIT_S", 1)
    with pytest.raises(UserError, match="not reachable"):
        JoinedCluster("tcp://127.0.0.1:1")


def test_a_scheduler_without_workers(scheduler, monkeypatch):
    cluster = JoinedCluster(scheduler.scheduler_address)
    try:
        monkeypatch.setattr(cluster.client, "scheduler_info", lambda: {"workers": {}})
        assert cluster.tend(1).notes == ("the scheduler has no workers; waiting for some",)
        monkeypatch.setattr(joined_cluster, "_WAIT_S", -1.0)
        with pytest.raises(MachineError, match="the scheduler had no worker"):
            cluster.tend(1)
    finally:
        cluster.close()


def test_a_scheduler_that_ends_is_not_the_fault_of_a_subject():
    """All calls that were left were failures of their subjects: "its worker process died twice"."""
    options = {"processes": False, "dashboard_address": None, "host": "127.0.0.1", "protocol": "tcp://"}
    with LocalCluster(1, threads_per_worker=1, **options) as cluster:

        def end(*_):
            cluster.close()

        with (
            Engine(1, start_cluster=lambda: JoinedCluster(cluster.scheduler_address)) as engine,
            pytest.raises(MachineError, match="connection to the scheduler of the workers was lost"),
        ):
            engine.map(lambda subject: subject.key, [(s,) for s in SUBJECTS * 30], stage="prepare", progress=end)
