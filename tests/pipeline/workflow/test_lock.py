"""Lock of an output folder, also on file systems without locks."""

import errno
import fcntl
import os
import threading

import pytest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.lock import sole_user


def test_a_second_run_is_refused(tmp_path):
    with sole_user(tmp_path), pytest.raises(UserError, match="another voxout process"), sole_user(tmp_path):
        pass


def test_a_patient_user_waits(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sole_user(tmp_path):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    entered.wait(10)
    threading.Timer(1.0, leave.set).start()
    with sole_user(tmp_path, patience_s=30) as held:
        assert held and leave.is_set()
    other.join()


def test_a_lock_file_is_never_emptied(tmp_path):
    (tmp_path / ".lock").write_text("pid 4711 of another program")
    with sole_user(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "pid 4711 of another program"


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path, kind):
    lock, thesis = tmp_path / ".lock", tmp_path / "thesis.txt"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(thesis)
    if kind == "link":
        thesis.write_text("precious")
    with pytest.raises(UserError, match=r"\.lock.*: is a link, a pipe or a folder"), sole_user(tmp_path):
        pass
    assert thesis.exists() == (kind == "link") and (kind != "link" or thesis.read_text() == "precious")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_user(tmp_path) as locked:
        (tmp_path / "result").write_text("made")
    (warning,) = capsys.readouterr().err.splitlines()
    assert not locked and "Start only one run at a time" in warning
