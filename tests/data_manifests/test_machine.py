"""Machine errors are distinguished from errors of a scan."""

import errno
import io
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from voxout.data_manifests import machine
from voxout.data_manifests.errors import SubjectError, for_terminal
from voxout.data_manifests.images.memory_map import new_mapped_array
from voxout.data_manifests.machine import machine_trouble, path_trouble


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_full_device_is_detected_through_libraries(tmp_path):
    def through_zip():
        with zipfile.ZipFile("/dev/full", "w") as file:
            file.writestr("a", bytes(10**6))

    def through_numpy():
        with open("/dev/full", "wb", buffering=0) as file:
            np.zeros(10**6).tofile(file)

    for call in (through_zip, through_numpy):
        error = raised(call)
        assert for_terminal(machine_trouble(error, tmp_path)).startswith(
            f"{tmp_path} (the output folder): no space left on its disk."
        )
        wrapped = SubjectError("sub-01: looks odd")
        wrapped.__cause__ = error
        assert "no space left" in machine_trouble(wrapped, tmp_path)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EDQUOT, "within the quota"), (errno.EROFS, "read-only"), (errno.EMFILE, "too many files"),
     (errno.ENOMEM, "No memory"), (errno.EIO, "input/output error")],
)  # fmt: skip
def test_other_machine_errors(number, words, tmp_path):
    assert words.lower() in machine_trouble(OSError(number, os.strerror(number)), tmp_path).lower()


def test_unreadable_scan_is_no_machine_error(tmp_path):
    for number in (errno.ENOENT, errno.EACCES, errno.EIO):
        error = SubjectError("sub-01: cannot be read")
        error.__cause__ = OSError(number, "why", "/data/sub-01.nii.gz")
        assert machine_trouble(error, tmp_path) is None
    assert machine_trouble(ValueError("a bug"), tmp_path) is None
    assert machine_trouble(io.UnsupportedOperation("a bug"), tmp_path) is None


def test_file_of_another_user_in_the_output_folder(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "records" / "a.json"))
    assert "belong to another user" in machine_trouble(error, tmp_path)


def test_too_long_name_is_truncated(tmp_path):
    sentence = path_trouble(raised(lambda: os.mkdir(tmp_path / ("n" * 300))))
    assert "File name too long" in sentence and len(sentence) < 300
    assert path_trouble(OSError(errno.EBADF, "a bug")) is None


def test_mapped_file_without_disk_space_is_an_error(tmp_path):
    path = tmp_path / "volumes.npy"
    code = (
        "import sys; from pathlib import Path; from voxout.data_manifests.images.memory_map import new_mapped_array\n"
        "new_mapped_array(Path(sys.argv[1]), 'f4', (int(sys.argv[2]),))[:] = 1\n"
    )
    free = os.statvfs(tmp_path)
    # More than the size of the disk; the file would be sparse.
    too_many = str(free.f_blocks * free.f_frsize // 4 * 2)
    done = subprocess.run([sys.executable, "-c", code, str(path), too_many], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "OSError" in done.stderr and not path.exists()


def test_disk_space_of_a_mapped_file_is_reserved(tmp_path):
    array = new_mapped_array(tmp_path / "a.npy", np.float16, (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 2_000_000
    array[:] = 3
    array.flush()
    assert (np.load(tmp_path / "a.npy") == 3).all()


def test_temporary_folder_in_the_output_folder_is_not_listed_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_FULL_BELOW_BYTES", 2**62)
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    message = for_terminal(machine_trouble(error, tmp_path))
    assert message.startswith(f"{tmp_path} (the output folder) and /tmp (the temporary")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ".scratch" / "1-1-a"))
    (tmp_path / ".scratch" / "1-1-a").mkdir(parents=True)
    assert for_terminal(machine_trouble(error, tmp_path)).startswith(f"{tmp_path} (the output folder): no space")
