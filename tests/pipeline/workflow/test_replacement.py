"""Results replace earlier results; other files are never touched."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.ownership import claim, require_apart, require_own_place, write_own
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.removal import remove_recorded
from voxout.pipeline.workflow.replacement import Replacement


def _files(out: Path) -> Replacement:
    folder = OutputFolder(out)
    return Replacement(folder, "fit", ("detectors", "latents"), folder.record("fit"))


def _build(out: Path, content: dict[str, str], inputs=None) -> StageRecord:
    files = _files(out)
    files.begin(inputs or {"settings": 1}, goes_on=lambda before, now: False)
    for name, text in content.items():
        path = files.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return files.finish(StageRecord("fit", inputs or {"settings": 1}, {}))


def _contents(root: Path) -> dict[str, str]:
    found = (path for path in root.rglob("*") if path.is_file() and "records" not in path.relative_to(root).parts)
    return {str(path.relative_to(root)): path.read_text() for path in found}


def test_new_files_replace_old_files(tmp_path):
    _build(tmp_path, {"detectors/a": "old", "detectors/gone": "old", "latents/x/b": "old"})
    record = _build(tmp_path, {"detectors/a": "new", "latents/c": "new"})
    assert _contents(tmp_path) == {"detectors/a": "new", "latents/c": "new"}
    assert record == StageRecord.read(OutputFolder(tmp_path).record("fit"))
    assert record.outputs == {"detectors/a": 3, "latents/c": 3} and set(record.hashes) == set(record.outputs)
    assert not (tmp_path / "latents" / "x").exists(), "no empty folder is left"


def test_files_that_a_record_lists_but_did_not_build_are_kept(tmp_path):
    """The record of a stage lists files built per subject; those of removed subjects are kept."""
    own = tmp_path / "maps" / "sub-a.nii"
    own.parent.mkdir()
    own.write_text("map")
    folder = OutputFolder(tmp_path)
    for outputs in ({"maps/sub-a.nii": 3}, {}):
        files = Replacement(folder, "map", (), folder.record("map"))
        files.begin({"subjects": len(outputs)})
        files.finish(StageRecord("map", {}, outputs))
    assert own.read_text() == "map"


def test_old_files_stay_until_the_new_ones_are_complete(tmp_path):
    _build(tmp_path, {"detectors/a": "old"})
    files = _files(tmp_path)
    assert not files.begin({"settings": 2})
    (files.built.detectors).mkdir()
    (files.built.detectors / "a").write_text("half")
    assert _contents(tmp_path)["detectors/a"] == "old"
    # Stopped here. The same inputs resume, other inputs start again.
    assert _files(tmp_path).begin({"settings": 2})
    assert (files.built.detectors / "a").read_text() == "half"
    assert not _files(tmp_path).begin({"settings": 3})
    _files(tmp_path).begin({"settings.models.detector.precision": "float16"})
    assert _files(tmp_path).begin({}), "which is no longer a setting"
    assert not (files.built.detectors / "a").exists()
    assert _contents(tmp_path)["detectors/a"] == "old"


def test_a_replacement_that_was_killed_is_completed(tmp_path, monkeypatch):
    """Killed at any of the renames."""
    for last in range(1, 5):
        out = tmp_path / str(last)
        _build(out, {"detectors/a": "old", "detectors/b": "old", "detectors/c": "old"})
        done, rename = 0, os.replace

        def killed(source, target, last=last, rename=rename):
            nonlocal done
            if ".building" in str(source) and ".building" not in str(target):
                done += 1
                if done == last:
                    raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        new = {"detectors/a": "new", "detectors/b": "new", "latents/d": "new"}
        if last <= 3:
            with pytest.raises(KeyboardInterrupt):
                _build(out, new)
        else:
            _build(out, new)
        monkeypatch.setattr(os, "replace", rename)
        _files(out).complete()
        assert _contents(out) == new
        assert _files(out).begin({"settings": 1}) is False


def test_a_foreign_file_in_the_way_stops_the_replacement(tmp_path):
    _build(tmp_path, {"detectors/a": "old"})
    (tmp_path / "detectors" / "b").write_text("mine")
    with pytest.raises(UserError, match="voxout did not write detectors/b"):
        _build(tmp_path, {"detectors/a": "new", "detectors/b": "new"})
    contents = _contents(tmp_path)
    assert contents["detectors/a"] == "old" and contents["detectors/b"] == "mine"
    (tmp_path / "detectors" / "b").unlink()
    _files(tmp_path).complete()
    assert _contents(tmp_path) == {"detectors/a": "new", "detectors/b": "new"}, "nothing is computed twice"


def test_foreign_files_are_named_before_the_work_starts(tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds latents/thesis\.txt, which no record of voxout lists"):
        _files(tmp_path).begin({})
    assert _contents(tmp_path) == {"latents/thesis.txt": "mine"}


def test_a_manually_changed_result_is_set_aside(tmp_path):
    _build(tmp_path, {"detectors/a": "old"})
    (tmp_path / "detectors" / "a").write_text("my")
    _build(tmp_path, {"detectors/a": "new"})
    (tmp_path / "detectors" / "a").write_text("it")
    _build(tmp_path, {"detectors/a": "new"})
    assert _contents(tmp_path) == {
        "detectors/a": "new", "set-aside/detectors/a": "my", "set-aside/detectors/2-a": "it"
    }  # fmt: skip


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    lab, out = tmp_path / "lab", tmp_path / "out"
    record = _build(out, {"detectors/a": "old"})
    lab.mkdir()
    (lab / "a").write_text("old")
    (out / "detectors" / "a").unlink()
    (out / "detectors").rmdir()
    (out / "detectors").symlink_to(lab)
    with pytest.raises(UserError, match="is a link that leads out of it"):
        remove_recorded(OutputFolder(out), record)
    with pytest.raises(UserError, match="is a link that leads out of it"):
        _build(out, {"detectors/a": "new"})
    assert _contents(lab) == {"a": "old"}


_NAMES = st.sampled_from(
    ["detectors/a", "detectors/b/c", "latents/d", "notes.txt", "detectors/mine", "scores/s", "prepared/sub-1/T1.nii"]
)


@settings(max_examples=150, deadline=None)
@given(
    ours=st.dictionaries(st.sampled_from(["detectors/a", "detectors/b/c", "latents/d"]), st.sampled_from("xy")),
    foreign=st.dictionaries(_NAMES, st.text("mine", min_size=3, max_size=5)),
    new=st.dictionaries(st.sampled_from(["detectors/a", "detectors/b/c", "latents/d"]), st.sampled_from("xy")),
    early=st.booleans(),
)
def test_no_foreign_file_is_lost(ours, foreign, new, early):
    """Foreign files are added before or after the first result; then results are replaced and removed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def put_foreign():
            for name, text in foreign.items():
                path = out / name
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
                    placed[name] = text

        placed: dict[str, str] = {}
        if early:
            put_foreign()
        for content in (ours, new):
            with contextlib.suppress(UserError):
                _build(out, content)
            put_foreign()
        record = StageRecord.read(OutputFolder(out).record("fit"))
        if record is not None:
            remove_recorded(OutputFolder(out), record)
        contents = _contents(out)
        assert {name: contents.get(name) for name in placed} == placed


def test_inputs_and_outputs_must_be_separate(tmp_path):
    dataset, out = tmp_path / "bids", tmp_path / "out"
    for folder in (dataset / "derivatives" / "voxout", out):
        folder.mkdir(parents=True)
    require_apart(out, {"sub-01, t1w": dataset / "sub-01_T1w.nii.gz"}, dataset)
    require_apart(dataset / "derivatives" / "voxout", {}, dataset)
    for place in (dataset, dataset / "derivatives", dataset / "sub-01" / "out", dataset / "derivatives" / "sub-01"):
        with pytest.raises(UserError, match="expected a separate folder"):
            require_apart(place, {"sub-01, t1w": dataset / "sub-01" / "anat" / "t1.nii"}, dataset)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match=r"holds inputs \(sub-01, t1w\)"):
        require_apart(out, {"sub-01, t1w": tmp_path / "link" / "t1.nii"})


def test_a_folder_with_foreign_files_of_the_same_names_is_refused(tmp_path):
    require_own_place(tmp_path / "new")
    require_own_place(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    require_own_place(tmp_path)
    (tmp_path / "prepared" / "sub-01").mkdir(parents=True)
    (tmp_path / "prepared" / "sub-01" / "T1.nii").write_text("mine")
    with pytest.raises(UserError, match="holds prepared and no record of voxout"):
        require_own_place(tmp_path)
    StageRecord("check", {}, {}).write(OutputFolder(tmp_path).record("check"))
    require_own_place(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "failures.csv", ".lock", ".building/check/scan.nii"])
def test_a_folder_of_another_program_is_refused_and_stays_as_it_is(tmp_path, name):
    (tmp_path / ".lock").touch()  # as of a folder in which nothing else was written
    claim(tmp_path / "new")
    require_own_place(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("theirs")
    before = _contents(tmp_path)
    with pytest.raises(UserError, match=f"holds {Path(name).parts[0]} and no record of voxout"):
        claim(tmp_path)
    assert _contents(tmp_path) == before and not (tmp_path / "records").exists()


def test_a_claimed_folder_stays_ours_whatever_a_run_left_in_it(tmp_path):
    out = tmp_path / "out"
    claim(out)
    for name in ("log.jsonl", "config.yaml", "failures.csv"):
        (out / name).write_text("ours")
    claim(out)


def test_records_in_a_linked_folder_are_not_written(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records").symlink_to(tmp_path / "lab")
    StageRecord("check", {}, {}).write(tmp_path / "lab" / "check.json")
    with pytest.raises(UserError, match="is a link that leads out of it"):
        claim(tmp_path / "out")
    with pytest.raises(UserError, match="is a link that leads out of it"):
        _build(tmp_path / "out", {"detectors/a": "new"})
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["check.json"]


@pytest.mark.parametrize("link", [".building", ".building/fit"])
def test_files_are_not_built_behind_a_link(tmp_path, link):
    lab, out = tmp_path / "lab", tmp_path / "out"
    record = StageRecord("fit", {}, {"fit/scan.nii": 4})
    for folder in (lab, lab / "fit"):  # also where the other folder was made by voxout
        folder.mkdir()
        (folder / "scan.nii").write_text("scan")
        (folder / ".inputs.json").write_text("{}")
        record.write(folder / ".record.json")
    before = _contents(lab)
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(lab)
    for act in (_files(out).complete, lambda: _files(out).begin({"settings": 2})):
        with pytest.raises(UserError, match="is a link, expected a folder"):
            act()
    assert _contents(lab) == before


def test_a_building_folder_of_another_program_is_kept(tmp_path):
    _build(tmp_path, {"detectors/a": "old"})
    scan = tmp_path / ".building" / "fit" / "scan.nii"
    scan.parent.mkdir(parents=True)
    scan.write_text("theirs")
    with pytest.raises(UserError, match=r"voxout did not make \.building/fit"):
        _build(tmp_path, {"detectors/a": "new"})
    assert _contents(tmp_path) == {"detectors/a": "old", ".building/fit/scan.nii": "theirs"}


@pytest.mark.parametrize("last", range(8))
def test_a_building_folder_is_ours_after_a_kill_at_any_step(tmp_path, monkeypatch, last):
    """Killed while the folder is made and while it is deleted; what was half deleted is not continued with."""
    steps = 0

    def killed_at_last(act):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps > last:
                raise KeyboardInterrupt
            return act(*arguments, **options)

        return step

    def start(settings):
        files = _files(tmp_path)
        going_on = files.begin({"settings": settings})
        files.built.detectors.mkdir(exist_ok=True)
        for name in ("a", "b"):
            (files.built.detectors / name).write_text(str(settings))
            (files.folder / name).write_text(str(settings))
        return going_on

    if last % 2:
        start(1)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for place, name in ((os, "replace"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
            patch.setattr(place, name, killed_at_last(getattr(place, name)))
        start(2)
    files = _files(tmp_path)
    if files.begin({"settings": 1}):
        assert sorted(path.name for path in files.folder.iterdir()) == [".inputs.json", "a", "b", "detectors"]
    assert start(1), "by now it is whole"


def _annotated(out: OutputFolder) -> None:
    out.failures.write_text("subject,why\nP1,called the ward\n")


def test_a_table_that_a_user_changed_is_kept(tmp_path):
    out = OutputFolder(tmp_path)
    assert write_own(out, out.failures, b"one") is None and out.failures.read_bytes() == b"one"
    assert write_own(out, out.failures, b"two") is None and out.failures.read_bytes() == b"two"
    _annotated(out)
    assert write_own(out, out.failures, b"three") == "set-aside/failures.csv"
    assert out.failures.read_bytes() == b"three"
    _annotated(out)
    assert write_own(out, out.failures, None) == "set-aside/2-failures.csv"
    kept = [path.read_text() for path in (tmp_path / "set-aside").iterdir()]
    assert not out.failures.exists() and ["P1" in text for text in kept] == [True, True]


def test_a_table_that_no_record_lists_is_kept(tmp_path):
    """Of an earlier version, or of the user."""
    out = OutputFolder(tmp_path)
    out.failures.write_text("as voxout writes it")
    assert write_own(out, out.failures, b"as voxout writes it") is None
    assert write_own(out, out.failures, None) is None and not out.failures.exists()
    assert write_own(out, out.failures, None) is None
    _annotated(out)
    assert write_own(out, out.failures, None) == "set-aside/failures.csv"
    out.failures.symlink_to(tmp_path / "set-aside" / "failures.csv")
    assert write_own(out, out.failures, b"new") == "set-aside/2-failures.csv"
    assert "P1" in (tmp_path / "set-aside" / "failures.csv").read_text()
    assert out.failures.read_bytes() == b"new" and not out.failures.is_symlink()


def test_files_of_one_record_are_replaced_apart(tmp_path):
    out = OutputFolder(tmp_path)
    write_own(out, out.failures, b"ours")
    _annotated(out)
    write_own(out, out.config, b"seed: 1")
    write_own(out, out.config, b"seed: 2")
    assert write_own(out, out.failures, None) == "set-aside/failures.csv"
    assert write_own(out, out.config, None) is None and not out.config.exists()


def test_a_folder_of_evaluate_is_no_place_for_a_run(tmp_path):
    StageRecord("evaluate", {}, {}).write(OutputFolder(tmp_path).record("evaluate"))
    with pytest.raises(UserError, match="was made by `voxout evaluate`, expected a new folder"):
        require_own_place(tmp_path)


def test_old_records_without_hashes_compare_sizes(tmp_path):
    (tmp_path / "a").write_text("abc")
    old = {"stage": "fit", "inputs": {}, "outputs": {"a": 3}, "done": [], "failed": [], "warnings": []}
    (tmp_path / "old.json").write_text(json.dumps(old))
    record = StageRecord.read(tmp_path / "old.json")
    assert record is not None and record.owns(tmp_path, "a") and not record.owns(tmp_path, "b")
