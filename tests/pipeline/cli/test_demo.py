"""The synthetic cohort of `voxout demo` takes its place when it is complete, and never that of other files."""

from contextlib import contextmanager

import pytest
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.cli import demo
from voxout.pipeline.workflow.console import Console


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "CONTROLS", 1)
    monkeypatch.setattr(demo, "HELD_OUT", 0)
    monkeypatch.setattr(demo, "PATIENTS", 1)
    monkeypatch.setattr(demo, "SPACING_MM", 8.0)
    (tmp_path / "scratch").mkdir()
    return tmp_path / "cohort", tmp_path / "scratch"


class _Stopping(Console):
    """A console at which Ctrl-C is pressed after the first head."""

    @contextmanager
    def progress(self, stage, what):
        def stop(*_):
            raise KeyboardInterrupt

        yield stop


def test_an_interrupted_cohort_is_not_taken_for_a_whole_one(folders):
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo_cohort(*folders, _Stopping(None))
    assert not folders[0].exists()


def test_a_whole_cohort_is_used_again(folders):
    manifest = demo.make_demo_cohort(*folders, Console(None, verbosity=-1))
    assert [subject.group for subject in read_manifest(manifest)] == ["control", "patient"]
    written = manifest.stat().st_mtime_ns
    assert demo.make_demo_cohort(*folders, Console(None, verbosity=-1)).stat().st_mtime_ns == written
    assert list(folders[1].iterdir()) == []


def test_other_files_are_left_alone(folders):
    theirs = folders[0] / "sub-control01" / "anat" / "sub-control01_T1w.nii.gz"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"a scan")
    with pytest.raises(UserError, match="is not empty, expected no such folder or an empty one"):
        demo.make_demo_cohort(*folders, Console(None))
    assert theirs.read_bytes() == b"a scan" and len(list(folders[0].rglob("*"))) == 3
