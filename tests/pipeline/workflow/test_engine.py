import copy
import logging
import os
import time

import pytest
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import SubjectError, UserError
from voxout.pipeline.workflow.engine import Engine


def _subjects(n):
    return [SubjectRecord(subject_id=f"{i:02d}", group="control", images={}) for i in range(n)]


def _task():
    # Local, so that it is pickled by value: a worker cannot import a test module.
    def task(subject, factor):
        number = int(subject.subject_id)
        if number == 1:
            raise SubjectError("sub-01: its own message.")
        if number == 2:
            raise UserError("a.nii.gz: a message without the subject.")
        if number == 3:
            raise ZeroDivisionError("a bug")
        if number == 4:
            os._exit(1)
        time.sleep(0.02)
        return number * factor, os.environ["OMP_NUM_THREADS"]

    return task


@pytest.fixture(scope="module")
def outcome():
    with Engine(jobs=2) as engine:
        messages = []
        result = engine.map(
            _task(),
            [(s, 10) for s in _subjects(8)],
            stage="prepare",
            progress=lambda done, total, key: messages.append(done),
        )
        assert messages == list(range(1, 9))
        yield result


def test_other_subjects_finish(outcome):
    assert {key: value for key, (value, _) in outcome.results.items()} == {
        "sub-00": 0,
        "sub-05": 50,
        "sub-06": 60,
        "sub-07": 70,
    }


def test_each_failure_names_the_subject_and_the_reason(outcome):
    reasons = {failure.key: failure.reason for failure in outcome.failures}
    assert list(reasons) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert reasons["sub-01"] == "sub-01: its own message."
    assert reasons["sub-02"] == "sub-02: a.nii.gz: a message without the subject."
    assert "ZeroDivisionError in test_engine.py" in reasons["sub-03"]
    assert "its worker process died twice" in reasons["sub-04"]


def test_workers_have_one_thread(outcome):
    assert {threads for _, threads in outcome.results.values()} == {"1"}


def test_no_calls_start_no_workers():
    engine = Engine(jobs=2)
    assert engine.map(_task(), [], stage="prepare").results == {}
    assert engine._cluster is None


def test_clients_without_the_key_are_refused():
    """Ports on loopback are open to all users of the machine."""
    from distributed import Client
    from distributed.security import Security

    def key_of(subject):
        return subject.key

    with Engine(1) as engine:
        assert engine.map(key_of, [(_subjects(1)[0],)], stage="test").results == {"sub-00": "sub-00"}
        address = engine._cluster.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for security, at in ((None, address.replace("tls://", "tcp://")), (Security.temporary(), address)):
            with pytest.raises((OSError, ValueError)):
                Client(at, security=security, timeout=2)


def test_temporary_files_are_deleted_at_the_end(tmp_path):
    def key_of(subject):
        return subject.key

    with Engine(1, tmp_path) as engine:
        engine.map(key_of, [(_subjects(1)[0],)], stage="test")
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_settings_of_dask_and_of_this_process_are_unchanged():
    """Other code in the same process may use Dask with its own settings."""
    import distributed  # noqa: F401  adds its settings
    from dask import config

    def key_of(subject):
        return subject.key

    before = copy.deepcopy(config.config), dict(os.environ), logging.getLogger("distributed").level
    with Engine(1) as engine:
        engine.map(key_of, [(_subjects(1)[0],)], stage="test")
        assert (config.config, dict(os.environ)) == before[:2]
    assert (config.config, dict(os.environ), logging.getLogger("distributed").level) == before
