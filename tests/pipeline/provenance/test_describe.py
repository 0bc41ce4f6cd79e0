"""What `voxout describe` says of records by hand, of records of before, and of what is not voxout's."""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import Failure, UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.data_manifests.open_file import file_hash
from voxout.evaluation.scoring.control_summary import ControlSummary
from voxout.evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from voxout.evaluation.settings import EvaluationSettings
from voxout.pipeline.cli.main import main
from voxout.pipeline.config.config import load_config
from voxout.pipeline.model.pack import pack
from voxout.pipeline.provenance.describe import describe
from voxout.pipeline.tools.result_file import MARK
from voxout.pipeline.workflow import origin
from voxout.pipeline.workflow.origin import Origin, changed_settings
from voxout.pipeline.workflow.records import StageRecord, evidence

from ..model.small_model import fit_small_model
from ..tools.test_score_maps import Maps

HASH = "0123456789abcdef"


@pytest.fixture
def out(tmp_path) -> OutputFolder:
    """Scores of two subjects, by a record with all that can be known."""
    out = OutputFolder(tmp_path / "out")
    (out.scores / "subjects").mkdir(parents=True)
    (out.scores / "scores.csv").write_text("a,b\n")
    found = evidence(out.root, [out.scores])
    record = StageRecord(
        "score",
        {"the model's threshold": HASH, "settings.evaluation.false_clusters": 2.0, "settings.seed": 7},
        found.sizes,
        hashes=found.hashes,
        done=("sub-01", "sub-02"),
        failed=(Failure("sub-03", "score", "no map"),),
        started="2026-03-01T09:30:00+00:00",
        wall_s=90.5,
        peak_memory_mb=2048,
        versions={"voxout": "0.1.0"},
        origin=Origin("voxout run", 7, {"evaluation.false_clusters": 2.0}, "1a2b with changes").recorded()
        | {"host": "Abacus, 4 cores, 8 GB"},
    )
    record.write(out.record("score"))
    return out


def rewrite(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_record_in_words(out):
    assert describe(out.scores / "scores.csv").as_text().splitlines() == [
        "scores/scores.csv",
        "  made by   voxout run, stage score: score the maps against the lesion masks",
        "  when      2026-03-01 09:30:00 UTC, 90.5 s, 2.0 GB of memory",
        "  machine   Abacus, 4 cores, 8 GB, cpu",
        "  subjects  2 done, 1 failed",
        f"  from      the model's threshold: hash {HASH}",
        "  seed      7",
        "  settings  evaluation.false_clusters = 2.0",
        "  versions  voxout 0.1.0; commit 1a2b with changes",
        f"  file      4 bytes, SHA-256 {hashlib.sha256(b'a,b' + bytes([10])).hexdigest()}",
        "  state     as voxout wrote it",
    ]


def test_a_record_of_before_says_what_it_knows(out):
    rewrite(out.record("score"), lambda values: values.pop("origin"))
    found = describe(out.scores / "scores.csv")
    assert found.command == "" and "made by   a command that is not recorded, stage score" in found.as_text()
    assert found.settings == {"evaluation.false_clusters": 2.0}, "those of the stage, against the defaults of today"
    assert found.seed == 7 and "recorded by an earlier version of voxout" in found.notes[0]


def test_the_origin_is_no_part_of_the_identity(out):
    """Otherwise, every later stage of a run of before would be done again."""
    record = StageRecord.read(out.record("score"))
    for other in ({}, Origin("voxout score", 1).recorded()):
        assert replace(record, origin=other).identity == record.identity
    old = asdict(record)
    old.pop("origin")
    assert StageRecord(**old | {"failed": record.failed}).identity == record.identity


def test_many_subjects_are_counted_in_words_and_listed_as_json(out):
    rewrite(out.record("score"), lambda v: v["inputs"].update({f"map of sub-{n}": HASH for n in range(9)}))
    found = describe(out.scores)
    assert "  from      map of: 9 subjects; --json lists them" in found.as_text()
    assert sum(each["name"].startswith("map of sub-") for each in json.loads(found.as_json())["inputs"]) == 9


def test_settings_that_differ():
    assert changed_settings(load_config()) == {}
    config = load_config(overrides=["models.detector.nu=0.25", "preprocessing.modalities=[t1w,flair]"])
    assert changed_settings(config) == {"models.detector.nu": 0.25, "preprocessing.modalities": ["t1w", "flair"]}


def test_the_commit_of_a_clone(tmp_path, monkeypatch):
    """Of the clone that holds the code, whatever clone the environment names; of a folder of wheels, none."""
    module = tmp_path / "pipeline" / "workflow" / "origin.py"
    module.parent.mkdir(parents=True)
    module.write_text("one")
    monkeypatch.setattr(origin, "__file__", str(module))

    def commit() -> str:
        origin.commit_of_clone.cache_clear()
        return origin.commit_of_clone()

    assert commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    index = (tmp_path / ".git" / "index").read_bytes()
    (tmp_path / "untracked").touch()
    os.utime(module, (1, 1))
    assert commit() == head
    assert (tmp_path / ".git" / "index").read_bytes() == index, "a clone of others is only read"
    module.write_text("two")
    assert commit() == f"{head} with changes"
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


@pytest.fixture(autouse=True)
def _own_commit():
    yield
    origin.commit_of_clone.cache_clear()


def test_the_summary_of_controls_counts_sexes_and_sites():
    sexes, sites = ["F", "male", "female", None, "x"], ["b", "a", "a", None, ""]
    found = ControlSummary.of([0], [0.001], [None], [], sexes, sites)
    assert (found.females, found.males, found.sites) == (2, 1, (2, 1))
    unknown = ControlSummary.of([0], [0.001], [None], [], [None, "x"], [None])
    assert (unknown.females, unknown.males, unknown.sites) == (None, None, None)


def test_a_threshold_of_before_keeps_its_bytes(tmp_path):
    """A packed model of before gives the same file when it is unpacked, so that no score is computed again."""
    settings = EvaluationSettings()
    none = np.zeros(0, np.float32)
    before = ControlSummary((0, 1), (0.001, 0.002), (20.0, 60.0), (1.0, 1.0))
    point = OperatingPoint(3.5, none, none, 2, controls=before)
    path = tmp_path / "point.json"
    StoredPoint.from_point(point, settings, "abc").save(path)
    assert not {"females", "males", "sites"} & json.loads(path.read_text())["controls"].keys()
    assert StoredPoint.load(path).controls == before
    now = replace(before, females=1, males=0, sites=(2,))
    StoredPoint.from_point(replace(point, controls=now), settings, "abc").save(path)
    assert StoredPoint.load(path).controls == now
    rewrite(path, lambda values: values["controls"].update(females=2))
    with pytest.raises(UserError, match="the threshold was changed or damaged"):
        StoredPoint.load(path)


# -- models ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fit_small_model(tmp_path_factory.mktemp("fitted") / "model")


def test_the_card_has_ages_sexes_and_scanners(fitted, tmp_path):
    model = OutputFolder(Path(shutil.copytree(fitted, tmp_path / "model")))
    config, fit = load_config(), StageRecord.read(model.record("fit"))
    summary = ControlSummary(
        (0, 1, 2, 1, 1, 1, 1, 1, 1, 1), (0.001,) + (0.002,) * 8 + (0.004,), (20.0, 60.0), (0.9, 1.2), 6, 4, (7, 3)
    )
    none = np.zeros(0, np.float32)
    point = OperatingPoint(3.5, none, none, 10, largest_mm3=(1.0,) * 10, controls=summary)
    StoredPoint.from_point(point, config.evaluation, fit.identity).save(model.operating_point)
    pack(model, tmp_path / "model.voxout", "CC BY 4.0")
    for path in (model.root, tmp_path / "model.voxout"):
        card = describe(path).model_card
        for row in (
            "| ages | 20 to 60 years, ends rounded |",
            "| sexes | 6 female, 4 male |",
            "| scanners | 2 sites (7, 3 scans) |",
            "| voxels of the scans | 0.9 to 1.2 mm |",
            "| false-positive clusters | 1 on average at the threshold, 2 at most, in scans that were left out",
            "| voxels above 3.09 | 0.2 % in the median of these scans, 0.4 % at most |",
        ):
            assert row in card
        assert ("| licence | CC BY 4.0 |" in card) == (path.suffix == ".voxout"), "the folder does not keep it"


@pytest.mark.parametrize("licence", ["", "a\nb", "x" * 201])
def test_a_licence_is_one_line(fitted, tmp_path, licence):
    with pytest.raises(UserError, match=r"^--licence: found \d+ characters or a line break, expected one line"):
        pack(OutputFolder(fitted), tmp_path / "model.voxout", licence)
    assert not (tmp_path / "model.voxout").exists()


@pytest.mark.parametrize("note", [" ", "a\nb", "x" * 501])
def test_a_note_is_one_line(fitted, tmp_path, note):
    with pytest.raises(UserError, match=r"^--note: found \d+ characters or a line break, expected one line"):
        pack(OutputFolder(fitted), tmp_path / "model.voxout", note=note)


def test_a_note_is_in_the_card_and_cannot_change_its_table(fitted, tmp_path):
    pack(OutputFolder(fitted), tmp_path / "model.voxout", note="3 T | see [x](http://y) <b>and</b> `z`")
    found = describe(tmp_path / "model.voxout")
    assert r"| note of the sender | 3 T \| see \[x\](http://y) \<b\>and\</b\> \`z\` |" in found.model_card
    assert found.model["note"].startswith("3 T | see")


def test_a_changed_model_is_named_beside_its_records(fitted, tmp_path):
    model = OutputFolder(Path(shutil.copytree(fitted, tmp_path / "model")))
    (model.detectors / "channels.json").write_text("{}")
    found = describe(model.root)
    assert not found.model_card and any("files are missing from the model or damaged" in note for note in found.notes)


# -- one sentence ------------------------------------------------------------------------------------------------------
def _nothing(path: Path) -> None:
    path.rmdir()


def _empty(path: Path) -> None:
    assert not list(path.iterdir())


def _foreign(path: Path) -> None:
    (path / "notes.txt").write_text("mine")


def _of_others(path: Path) -> None:
    """A record of another program."""
    (path / "records").mkdir()
    (path / "records" / "map.json").write_text("[]")


def _scan(path: Path) -> None:
    path.rmdir()
    write_volume(path.with_name("x.nii.gz"), Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), np.eye(4))))
    path.with_name("x.nii.gz").rename(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nothing, "no such file or folder, expected a file or folder that voxout wrote"),
        (_empty, "no record of voxout says that it made this, expected"),
        (_foreign, "no record of voxout says that it made this, expected"),
        (_of_others, "no record of voxout says that it made this; records/map.json cannot be read"),
        (_scan, "no record of voxout says that it made this, expected"),
    ],
)
def test_what_is_not_voxouts_gives_one_sentence(tmp_path, capsys, make, words):
    path = tmp_path / "place"
    path.mkdir()
    make(path)
    assert main(["describe", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"voxout: {path}: {words}")


@pytest.mark.parametrize("content", ["[]", "{", '{"GeneratedBy": 3}', '{"GeneratedBy": [3]}', '{"GeneratedBy": []}'])
def test_json_of_other_programs(tmp_path, content):
    (tmp_path / "sub-01_zmap.json").write_text(content)
    (tmp_path / "sub-01_zmap.nii.gz").touch()
    for name in ("sub-01_zmap.json", "sub-01_zmap.nii.gz"):
        with pytest.raises(UserError, match=r"(no record of voxout says that it made this|is damaged), expected"):
            describe(tmp_path / name)


def test_a_packed_model_that_is_damaged(tmp_path):
    (tmp_path / "model.voxout").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not a packed model or is cut off"):
        describe(tmp_path / "model.voxout")


def test_files_without_a_record_of_their_own(out, tmp_path):
    out.log.touch()
    (out.root / "set-aside").mkdir()
    assert describe(out.log).holds == "messages of all commands in this folder"
    assert describe(out.root / "set-aside").holds.startswith("files that were changed after")
    volume = Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), np.eye(4)))
    write_volume(tmp_path / "atlas.nii.gz", volume, description=MARK)
    assert describe(tmp_path / "atlas.nii.gz").command == "voxout native"


def test_a_subject_is_found_by_session_and_by_page(out):
    subject = SubjectRecord("07", "patient", {}, session_id="2")
    for record, path in (
        (out.map_record(subject), out.native_map(subject)),
        (out.page_record(subject), out.subject_page(subject)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        found = evidence(out.root, [path])
        stage = "map" if path.suffix == ".gz" else "report"
        StageRecord(stage, {}, found.sizes, hashes=found.hashes, done=(subject.key,)).write(record)
        assert describe(path).subject == describe(record).subject == "sub-07_ses-2"
        assert describe(path).stage.startswith(f"{stage}: ")


def test_folders_of_evaluate_and_compare(tmp_path):
    maps = Maps(tmp_path)
    assert maps.score("--seed", "4") == maps.score("--seed", "4", out="again") == 0
    found = describe(tmp_path / "out" / "scores.json")
    assert found.command == "voxout evaluate" and found.seed == 4 and found.done == 7 and found.seconds
    assert found.settings == {"seed": 4, "evaluation.false_clusters": 2.0, "evaluation.bootstrap_draws": 50}
    assert found.state == "as voxout wrote it" and len(found.inputs) == 7
    before = {each.name: each.value for each in found.inputs}
    maps.put("masks", maps.mask_name, "a", maps.truth["b"])
    assert maps.score("--seed", "4") == 0
    now = {each.name: each.value for each in describe(tmp_path / "out").parts[0].inputs}
    assert [name for name in now if now[name] != before[name]] == ["map and masks of a"]
    assert main(["compare", str(tmp_path / "again"), str(tmp_path / "again"), "--out", str(tmp_path / "no")]) == 2
    shutil.copytree(tmp_path / "again", tmp_path / "run" / "scores")
    both = [str(tmp_path / "again"), str(tmp_path / "run")]
    assert main(["compare", *both, "--out", str(tmp_path / "differences")]) == 0
    found = describe(tmp_path / "differences" / "compare.json")
    assert found.command == "voxout compare" and found.stage.startswith("compare: ")
    expected = f"hash {file_hash(tmp_path / 'again' / 'scores.json')[:16]}"
    assert [each.value for each in found.inputs] == [expected, expected]
