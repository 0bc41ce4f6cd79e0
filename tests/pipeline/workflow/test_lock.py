"""Lock of an output folder, also on file systems without locks."""

import errno
import fcntl

import pytest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.lock import sole_user


def test_a_second_run_is_refused(tmp_path):
    with sole_user(tmp_path), pytest.raises(UserError, match="another voxout process"), sole_user(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    warnings = []
    with sole_user(tmp_path, warnings.append):
        (tmp_path / "result").write_text("made")
    assert len(warnings) == 1 and "Start only one run at a time" in warnings[0]
