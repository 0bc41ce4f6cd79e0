"""A finished run and a model applied: where each file comes from, and who can read it while it is made and after."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_IMODE, S_ISLNK

import pytest
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder, beside
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.open_file import file_hash
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cli.main import main
from voxout.pipeline.provenance.describe import describe
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.stage_titles import STAGE_TITLES

from ...data_manifests.as_another import folder_of_another
from ..planted_name import NAME
from ..small_run import SETTINGS, as_arguments

SEED = 3
pytestmark = pytest.mark.usefixtures("warm_workers")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@dataclass
class Seen:
    """Permissions of all that was ever seen in a folder."""

    modes: dict[str, set[int]] = field(default_factory=dict)

    def look(self, root: Path) -> None:
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                path = Path(folder) / name
                try:
                    state = path.lstat()
                except OSError:
                    continue
                if not S_ISLNK(state.st_mode):
                    self.modes.setdefault(str(path.relative_to(root)), set()).add(S_IMODE(state.st_mode))


@contextmanager
def watched(root: Path) -> Iterator[Seen]:
    seen, ended = Seen(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.look(root)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()
    seen.look(root)


@dataclass(frozen=True)
class Lab:
    cohort: Path
    out: OutputFolder
    applied: OutputFolder
    packed: Path
    seen: Seen


@pytest.fixture(scope="module")
def lab(warm_workers, tmp_path_factory) -> Lab:
    """All with umask 077; the output folder itself was made before, and is open to all."""
    folder = tmp_path_factory.mktemp("lab")
    cohort = small_cohort(folder / NAME, controls=4, held_out=1, patients=2, seed=5)
    out, applied, packed = folder / "out", folder / "applied", folder / "model.voxout"
    out.mkdir(mode=0o755)
    command = ["run", str(cohort), str(out), "--preset", "fast", "--device", "cpu", "--seed", str(SEED), "-q"]
    with umask(0o077):
        with watched(out) as seen:
            assert main([*command, *as_arguments(SETTINGS)]) == 0
        assert main(["model", "pack", str(out), str(packed), "--licence", "CC0"]) == 0
        scan = read_manifest(cohort).patients[0].images["t1w"]
        assert main(["apply", str(packed), str(scan), str(applied), "-q"]) == 0
    return Lab(cohort, OutputFolder(out), OutputFolder(applied), packed, seen)


# -- who can read it -------------------------------------------------------------------------------------------------
def test_with_umask_077_nothing_was_ever_open_to_others(lab):
    """Temporary files, scratch folders, lock, logs and tables, also of workers that were started with another umask."""
    names = {name.split("/")[0] for name in lab.seen.modes}
    assert {".lock", ".scratch", ".building", "status.csv", "log.jsonl", "maps", "report"} <= names
    assert any(re.match(r"\.[0-9]+-", Path(name).name) for name in lab.seen.modes), "no temporary file was seen"
    assert {name: modes for name, modes in lab.seen.modes.items() if any(mode & 0o077 for mode in modes)} == {}


def test_with_umask_022_others_may_read_the_results_but_no_temporary_files(lab, tmp_path):
    out = tmp_path / "out"
    command = ["prepare", str(lab.cohort), str(out), "--preset", "fast", "-q", *as_arguments(SETTINGS)]
    with umask(0o022), watched(out) as seen:
        assert main(["check", *command[1:]]) == 0
        assert main([*command, "--subjects", "patient001"]) == 0
    assert seen.modes[".scratch"] == {0o700}
    scratch = {name for name in seen.modes if name.startswith(".scratch/")}
    left = {name for name in seen.modes if (out / name).is_file()}
    assert scratch and any(name.endswith("_zmap.nii.gz") or "desc-preproc" in name for name in left)
    assert {name: modes for name, modes in seen.modes.items() if name in left and modes != {0o644}} == {}
    assert not any(mode & 0o022 for modes in seen.modes.values() for mode in modes), "nobody else may write"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser may try as another user")
def test_another_user_can_read_nothing_and_gets_one_sentence_for_each_command(lab, capsys, monkeypatch):
    assert main(["describe", str(lab.out.root)]) == 0  # what is imported later, another user may not read
    with folder_of_another() as place:
        folder = place.parent / f"{place.name}-lab"
        os.seteuid(0)
        shutil.copytree(lab.out.root, folder / "out")
        folder.chmod(0o755)
        os.seteuid(65534)
        try:
            out = OutputFolder(folder / "out")
            assert sorted(out.root.iterdir()), "the folder itself is open"
            opened = []
            for name in lab.seen.modes:
                try:
                    opened.append((out.root / name).open("rb"))
                except OSError:
                    continue
            assert opened == []
            capsys.readouterr()
            for words in (
                ("status", out.root),
                ("describe", out.root),
                ("describe", out.scores / "scores.csv"),
                ("remove", out.root, "sub-patient001"),
            ):
                assert main([str(word) for word in words]) == 2
                lines = capsys.readouterr().err.splitlines()
                assert len(lines) == 1 and "Permission denied" in lines[0], words
        finally:
            os.seteuid(0)
            shutil.rmtree(folder)
            os.seteuid(65534)


# -- where it comes from ---------------------------------------------------------------------------------------------
def test_every_file_of_a_run_is_described(lab):
    for out, command in ((lab.out, "voxout run"), (lab.applied, "voxout apply")):
        files = [path for path in out.root.rglob("*") if path.is_file()]
        assert len(files) > 40
        for path in files:
            found = describe(path)
            name = str(path.relative_to(out.root))
            assert found.name == name
            if found.stage:
                assert found.command == command and found.seed == SEED and found.versions and found.machine, name
                assert found.state in ("as voxout wrote it", ""), name
                assert {n: found.settings[n] for n in ("preprocessing.spacing_mm",)} == {
                    "preprocessing.spacing_mm": 4.0
                }
            else:
                assert found.holds, name
            assert NAME not in found.as_text() + found.as_json()


def test_a_map_tells_its_scan_its_model_and_how_it_was_made(lab):
    patient = read_manifest(lab.cohort).patients[0]
    path = lab.out.native_map(patient)
    found = describe(path)
    assert found.stage.startswith("map: ") and found.subject == patient.key
    assert found.holds.startswith("Anomaly score, higher = more anomalous")
    assert found.sha256 == file_hash(path) and found.size == path.stat().st_size
    record = StageRecord.read(lab.out.map_record(patient))
    assert (found.began, found.seconds) == (record.started, record.wall_s)
    inputs = {each.name: each for each in found.inputs}
    assert inputs["t1w"].value == f"hash {file_hash(patient.images['t1w'])[:16]}"
    assert inputs["the detectors"].record == "records/fit.json"
    assert inputs["prepared"].record == f"prepared/{patient.key}/record.json"
    # Every setting that was given, by its full name, and no other but those of the preset.
    given = {name: value for name, value in SETTINGS.items() if not isinstance(value, str)}
    assert len(given) > 1 and given.items() <= found.settings.items()
    assert found.settings["models.ensemble.scorers"] == ["patches", "extension"]
    assert "models.detector.nu" not in found.settings


def test_the_text_has_all_of_it_in_words(lab, capsys):
    patient = read_manifest(lab.cohort).patients[0]
    path = lab.out.native_map(patient)
    assert main(["describe", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"maps/{patient.key}/anat/{path.name}"
    assert "  made by   voxout run, stage map: write anomaly maps of patients and held-out controls" in lines
    assert f"  seed      {SEED}" in lines and "  state     as voxout wrote it" in lines
    assert '            preprocessing.registration.transform = "affine"' in lines
    assert main(["describe", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(describe(path).as_json())


def test_folders(lab):
    patient = read_manifest(lab.cohort).patients[0]
    assert describe(lab.out.detectors).stage.startswith("fit: ")
    assert describe(lab.out.subject_folder(patient)).subject == patient.key
    both = describe(lab.out.map_folder(patient))
    assert [part.stage.partition(":")[0] for part in both.parts] == ["map", "report"], "clusters are of the report"
    whole = describe(lab.out.root)
    assert [part.stage.partition(":")[0] for part in whole.parts] == [n for n in STAGE_TITLES if n != "train"]
    assert whole.model["to"] == "4 healthy scans" and whole.model["sexes"] == "not stated"
    assert "# A model of normal brain anatomy" in whole.as_text() and "voxout apply THIS_FOLDER" in whole.as_text()
    assert whole.checksums["detectors/config.yaml"] == file_hash(lab.out.fitted_config)
    assert "voxout apply" in describe(lab.applied.root).holds


def test_a_packed_model_and_its_maps_name_each_other(lab):
    packed = describe(lab.packed)
    assert packed.sha256 == file_hash(lab.packed) and packed.model["licence"] == "CC0"
    assert "| licence | CC0 |" in packed.model_card and "| ages | 20 to 70 years, ends rounded |" in packed.model_card
    (record,) = lab.applied.maps.rglob("record.json")
    fit = StageRecord.read(record).inputs["the detectors"]
    assert f"Fit {fit}" in packed.holds


def test_a_map_that_left_the_folder(lab, tmp_path):
    patient = read_manifest(lab.cohort).patients[0]
    path = lab.out.native_map(patient)
    for file in (path, beside(path, ".json")):
        shutil.copy(file, tmp_path)
    found = describe(tmp_path / path.name)
    inside = describe(path)
    assert replace(found, began="", inputs=(), notes=()) == replace(
        inside, name=path.name, stage="", subject="", began="", seconds=None, memory_mb=None, device="", settings=None,
        inputs=(), notes=(), state="",
    )  # fmt: skip
    assert {i.name: i.value for i in found.inputs} == {
        i.name: i.value for i in inside.inputs if i.name in ("t1w", "the detectors")
    }
    assert describe(tmp_path).parts[0].holds == found.holds
    (tmp_path / beside(path, ".json").name).write_text("{")
    with pytest.raises(UserError, match=r"is damaged, expected what voxout wrote beside a map"):
        describe(tmp_path / path.name)
    (tmp_path / beside(path, ".json").name).unlink()
    with pytest.raises(UserError, match=r"no record of voxout says that it made this"):
        describe(tmp_path / path.name)


def test_what_was_changed_or_added(lab, tmp_path):
    out = OutputFolder(Path(shutil.copytree(lab.out.root, tmp_path / "out")))
    table = out.scores / "scores.csv"
    before = table.stat().st_size
    table.write_text(table.read_text() + "x")
    assert describe(table).state == f"CHANGED since voxout wrote it: it had {before:,} bytes"
    assert "1 of another size than recorded" in describe(out.scores).state
    table.unlink()
    assert "1 of them missing" in describe(out.scores).state
    (out.scores / "own.csv").touch()
    with pytest.raises(UserError, match=r"no record of voxout says that it made this, expected"):
        describe(out.scores / "own.csv")
    out.record("score").write_text("{")
    with pytest.raises(UserError, match=r"made this; records/score\.json cannot be read, .* Run the stage again"):
        describe(out.scores / "scores.json")
    assert "records/score.json is damaged: the stage runs again with the next `voxout run`" in describe(out.root).notes
