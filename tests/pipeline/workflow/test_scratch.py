"""Temporary files of a run: in the output folder, and deleted when the run ends."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.scratch import _started, at_work_in, scratch_folder


def test_temporary_files_lie_in_the_output_folder_until_the_end(tmp_path):
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path / ".scratch"
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == folder
        messages = subprocess.run(
            [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"], capture_output=True, text=True
        ).stdout
        assert Path(messages.strip()).parent == folder and Path(messages.strip()).is_dir()
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before
    assert list(tmp_path.iterdir()) == []


def test_only_files_of_killed_runs_are_deleted(tmp_path):
    script = f"""
import os, pathlib
from voxout.pipeline.workflow.scratch import at_work_in
with at_work_in(pathlib.Path({str(tmp_path)!r})) as folder:
    (folder / "head.nii").write_text("a head")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script])
    home = tmp_path / ".scratch"
    assert [path.name for path in home.rglob("*.nii")] == ["head.nii"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "scan.nii").write_text("a scan")
    (home / "1-1-0123abcd").symlink_to(elsewhere)
    (home / "notes").mkdir()
    of_running_process = home / f"{os.getpid()}-{_started(os.getpid())}-0123abcd"
    of_running_process.mkdir()
    of_reused_process_id = home / f"{os.getpid()}-1-0123abcd"
    of_reused_process_id.mkdir()
    with at_work_in(tmp_path) as folder:
        assert {path.name for path in home.iterdir()} == {
            folder.name,
            "1-1-0123abcd",
            "notes",
            of_running_process.name,
        }
    assert (elsewhere / "scan.nii").read_text() == "a scan"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_link_in_its_place_gives_one_message(tmp_path, kind):
    place = tmp_path / ".scratch"
    if kind == "file":
        place.write_text("")
    else:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="Move it away"), scratch_folder(tmp_path):
        pass


def test_temporary_files_are_deleted_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "head.nii").write_text("a head")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
