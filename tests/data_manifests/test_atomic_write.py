"""Tests of atomic writing."""

import os
import subprocess

import pytest
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.errors import UserError


def test_file_appears_when_complete(tmp_path):
    path = tmp_path / "new" / "table.nii.gz"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("complete")
        assert not path.exists()
    assert path.read_text() == "complete" and list(path.parent.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("partial")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_killed_processes_are_deleted(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    path = tmp_path / "volumes.npy"
    gone, alive = tmp_path / f".{child.pid}-volumes.npy", tmp_path / f".{os.getppid()}-volumes.npy"
    others = [tmp_path / f".{child.pid}-inside.npy", tmp_path / f"{child.pid}-volumes.npy", tmp_path / ".x-volumes.npy"]
    for file in (gone, alive, *others):
        file.write_text("partial")
    with atomic_write(path) as temporary:
        temporary.write_text("complete")
    assert not gone.exists()
    assert all(file.read_text() == "partial" for file in (alive, *others))


def test_nothing_is_written_through_a_link(tmp_path):
    other, path = tmp_path / "thesis.txt", tmp_path / "table.csv"
    other.write_text("precious")
    link = tmp_path / f".{os.getpid()}-table.csv"
    link.symlink_to(other)
    with pytest.raises(UserError, match="is a link"), atomic_write(path):
        pass
    assert other.read_text() == "precious" and link.is_symlink() and not path.exists()
    link.unlink()
    path.symlink_to(other)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert other.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()
