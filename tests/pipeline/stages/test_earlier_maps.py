"""Maps of earlier calls: what replaces them, what keeps them, and what `voxout remove` leaves."""

import re
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.pipeline.cli.main import main
from voxout.pipeline.config.config import Config
from voxout.pipeline.stages import check, map, report
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.earlier_subjects import about_subject, remove_subjects
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.records import StageRecord, evidence, file_fingerprint, write_json
from voxout.pipeline.workflow.runner import Run, StageResult
from voxout.pipeline.workflow.stage_inputs import files_of


class Study:
    """An output folder in which some patients and controls are prepared and mapped; no file is an image."""

    def __init__(self, root: Path):
        self.root, self.out = root, OutputFolder(root / "Mustermann" / "out")
        self.model = self.out
        self.done: list[SubjectRecord] = []

    def subject(self, name: str, group="patient", scan: str | None = None) -> SubjectRecord:
        path = self.root / "scans" / f"{name}.nii"
        path.parent.mkdir(exist_ok=True)
        path.write_text(scan or f"scan of {name}")
        return SubjectRecord(name, group, {"t1w": path})

    def write(self, record: Path, stage: str, names: list[Path], done: tuple[str, ...] = (), **more) -> None:
        for path in names:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
        found = evidence(self.out.root, names)
        StageRecord(stage, more.pop("inputs", {}), found.sizes, done, hashes=found.hashes, **more).write(record)

    def mapped(self, name: str, group="patient") -> SubjectRecord:
        subject, out = self.subject(name, group), self.out
        self.done.append(subject)
        self.write(out.subject_record(subject), "prepare", [out.quality(subject)], inputs=files_of(subject))
        self.write(out.map_record(subject), "map", [out.native_map(subject)], about=about_subject(subject))
        self.write(out.page_record(subject), "report", [out.subject_page(subject)])
        self.write(out.record("prepare"), "prepare", [], tuple(s.key for s in self.done))
        return subject

    def run(self, *subjects: SubjectRecord, console: Console | None = None) -> Run:
        console = console or Console()
        return Run(Manifest(subjects), Config(), self.out, self.model, None, Engine(1), "cpu", console)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.out.root.rglob("*") if path.is_file()}


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path)


def test_a_scan_out_of_reach_keeps_its_map_and_page(study):
    gone, changed = study.mapped("gone"), study.mapped("changed")
    gone.images["t1w"].unlink()
    changed.images["t1w"].write_text("a new scan, which failed")
    assert map._remove_maps_of_failed(study.run(gone, changed), ()) == ["sub-gone"]
    assert study.out.native_map(gone).is_file() and study.out.subject_page(gone).is_file()
    assert not (study.out.maps / "sub-changed").exists(), "nor an empty folder"
    assert not any("sub-changed" in name for name in study.files - {study.out.quality(changed).name})


def test_a_pointer_is_out_of_reach_and_a_changed_scan_next_to_it_is_not_kept(study):
    patient = study.mapped("01")
    flair = study.root / "flair.nii"
    both = SubjectRecord("01", "patient", {**patient.images, "flair": flair})
    flair.write_text("flair")
    study.write(study.out.subject_record(both), "prepare", [study.out.quality(both)], inputs=files_of(both))
    flair.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert map._is_out_of_reach(both, study.out)
    both.images["t1w"].write_text("another scan")
    assert not map._is_out_of_reach(both, study.out)


def test_the_stage_says_what_it_kept_and_what_the_model_was_trained_on(study, monkeypatch):
    monkeypatch.setattr(map, "work_by_subject", lambda *a: StageResult())
    monkeypatch.setattr(map, "require_files_of_model", lambda model: None)
    study.model = OutputFolder(study.root / "model")
    patient, control, gone = study.mapped("01"), study.mapped("02", "control"), study.mapped("03")
    known = [file_fingerprint(subject.images["t1w"]) for subject in (patient, control)]
    write_json(study.model.trained_on, known)
    gone.images["t1w"].unlink()
    study.write(study.out.record("prepare"), "prepare", [], ("sub-01", "sub-02"))
    assert map._map(None, study.run(patient, control, gone)).warnings == (
        "sub-01: its map shows too little, since the model was trained on this scan",
        "sub-02: left out, since the model was trained on this scan",
        "sub-03: cannot be reached now; its map and page of an earlier call are kept",
    )


def test_a_map_of_another_scan_is_not_replaced_in_silence(study, capsys):
    before = study.mapped("01")
    check._judge_replaced_scans(study.run(before))
    other = study.subject("01", scan="scan of another person")
    check._judge_replaced_scans(study.run(other, console=Console(verbosity=-1)))
    assert "sub-01: was mapped from another scan before; its map is replaced" in capsys.readouterr().err
    study.model = OutputFolder(study.root / "model")
    with pytest.raises(UserError, match="sub-01: the output folder has a map of another scan with this id"):
        check._judge_replaced_scans(study.run(other))
    study.out.subject_record(before).unlink()
    assert check._is_of_another_scan(other, study.out), "also without the prepared scan"
    other.images["t1w"].unlink()
    assert not check._is_of_another_scan(other, study.out), "a scan out of reach"


def test_removing_a_training_control_names_what_still_holds_its_data(study, capsys):
    for name in ("01", "02"):
        study.mapped(name, "control")
    out = study.out
    latents = [out.latents / "null" / f"sub-{name}.npy" for name in ("01", "010")]
    study.write(out.record("fit"), "fit", [*latents, out.detectors / "model.json"])
    study.write(out.record("extract"), "extract", [out.patches / "store.json"], ("sub-01", "sub-02", "sub-010"))
    unfinished = out.root / ".building" / "map-sub-01" / "maps" / "x.nii"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    assert main(["remove", str(out.root), "01", "02"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("removed sub-01, sub-02.")
    assert "sub-01: patches/ and the model (encoder/, detectors/) were made of all controls and still" in said.err
    assert "sub-02: patches/ were made of all controls and still hold its data" in said.err
    assert not [path for path in out.root.rglob("*") if re.search(r"sub-0[12](?!\d)", path.name)]
    assert latents[1].is_file() and (out.detectors / "model.json").is_file()


def test_removing_a_patient_says_what_was_set_aside(study):
    patient = study.mapped("01")
    study.out.native_map(patient).write_text("painted over")
    removed = remove_subjects(study.out, ["sub-01"])
    assert (removed.in_model, removed.in_patches) == ((), ())
    assert removed.set_aside == (str(study.out.native_map(patient).relative_to(study.out.root)),)


def test_the_log_names_no_folder_of_the_user(study, monkeypatch, capsys):
    monkeypatch.setattr(report, "work_by_subject", lambda *a, **more: StageResult(done=("sub-01",)))
    monkeypatch.setattr(report, "load_scores", lambda run: None)
    monkeypatch.setattr(report.Shared, "from_scores", lambda *a: None)
    monkeypatch.setattr(report, "write_cohort_report", lambda *a: None)
    monkeypatch.setattr(report, "_gather_clusters", lambda *a: None)
    study.out = study.out.built_in(study.out.root / ".building" / "report", ("cohort_page",))
    run = study.run(study.subject("01"))
    study.out.log.parent.mkdir(parents=True)
    Console(study.out.log).say(report.write_pages(run, {}, {}).summary)
    assert f"1 subject page; open {study.out.root}/report/index.html in a browser" in capsys.readouterr().out
    assert "1 subject page; open the report in a browser" in study.out.log.read_text()
