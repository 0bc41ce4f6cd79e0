"""Files are whole or not there."""

import os
import subprocess

import pytest
from voxout.data_manifests.atomic_write import atomic_write


def test_the_name_appears_when_the_file_is_whole(tmp_path):
    path = tmp_path / "new" / "table.nii.gz"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_the_same_file_is_deleted(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    path = tmp_path / "volumes.npy"
    gone, alive = tmp_path / f".{child.pid}-volumes.npy", tmp_path / f".{os.getppid()}-volumes.npy"
    others = [tmp_path / f".{child.pid}-inside.npy", tmp_path / f"{child.pid}-volumes.npy", tmp_path / ".x-volumes.npy"]
    for file in (gone, alive, *others):
        file.write_text("half")
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert not gone.exists()
    assert all(file.read_text() == "half" for file in (alive, *others))
