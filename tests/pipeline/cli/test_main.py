import csv
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.images.volume import read_volume, write_volume
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.cli.main import main
from voxout.pipeline.workflow.lock import sole_user
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.stage_titles import STAGE_TITLES

QUICK = (
    *("--set", "preprocessing.spacing_mm=4", "--set", "preprocessing.registration.transform=affine"),
    *("--set", "preprocessing.registration.working_spacing_mm=4"),
    *("--set", "preprocessing.bias_field.working_spacing_mm=8"),
)
"""Settings for a fast, coarse preparation."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort"), controls=4, patients=1, seed=1)


@pytest.fixture
def own_cohort(cohort, tmp_path):
    """A copy of the cohort, to be changed."""
    return shutil.copytree(cohort.parent, tmp_path / "cohort") / cohort.name


def _run(capsys, *arguments) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_check_of_a_valid_cohort_succeeds(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "check", cohort, tmp_path)
    assert messages.count("a run takes about ") == 1
    assert code == 0
    assert "5 of 5 subjects passed" in messages
    assert not (tmp_path / "failures.csv").exists()


def test_check_warns_of_too_few_controls_for_training(capsys, cohort, tmp_path):
    """The warning is shown at every call, also if the check is up to date."""

    def messages(*settings):
        return _run(capsys, "check", cohort, tmp_path, *settings)[1]

    assert "will stop" not in messages("--preset", "fast", "--set", "data_manifests.held_out_share=0")
    assert "train will stop" not in messages("--preset", "default")
    second = messages("--preset", "default", "--set", "models.contrast.weight=1")
    assert "warning: train will stop: Contrast with edits" in second and "expected at least 10" in second
    assert "train will stop" not in messages("--set", "models.training.guided_steps=0")


def test_check_warns_of_too_few_controls_for_cross_fitting(capsys, own_cohort, tmp_path):
    manifest = read_manifest(own_cohort)
    split = ["held_out", "held_out", "train", "train"]
    records = [replace(record, split=side) for record, side in zip(manifest.controls, split, strict=True)]
    write_manifest(own_cohort, Manifest((*records, *manifest.patients)))
    messages = _run(capsys, "check", own_cohort, tmp_path / "out", "--preset", "fast")[1]
    assert "warning: fit will stop: 2 training controls, expected at least 3" in messages


def test_check_lists_problems_of_settings_and_scans_together(capsys, own_cohort, tmp_path):
    read_manifest(own_cohort).controls[2].images["t1w"].write_bytes(b"no scan")
    code, messages = _run(capsys, "check", own_cohort, tmp_path / "out", "--set", "models.ensemble.covariates=[site]")
    assert code == 2
    assert "models.ensemble.covariates names site" in messages and "control003" in messages


def test_a_problem_of_all_subjects_is_listed_once(capsys, own_cohort, tmp_path):
    bare = [replace(record, brain_mask=None) for record in read_manifest(own_cohort)]
    bare[1].images["t1w"].write_bytes(b"no scan")
    write_manifest(own_cohort, Manifest(tuple(bare)))
    given = ("--set", "preprocessing.brain_extraction.method=given")
    code, messages = _run(capsys, "check", own_cohort, tmp_path / "out", *given)
    assert code == 2
    assert "voxout: all 5 subjects: no brain mask is given, but brain_extraction.method requires one;" in messages
    assert messages.count("no brain mask is given") == 1
    assert "voxout: sub-control002: " in messages


def test_a_missing_manifest_gives_one_message(capsys, tmp_path):
    code, messages = _run(capsys, "check", tmp_path / "none.csv", tmp_path / "out")
    assert code == 2
    assert messages.startswith("voxout: ") and "no such file" in messages
    assert "Traceback" not in messages


def test_a_stage_names_the_stage_that_it_needs(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "train", cohort, tmp_path)
    assert code == 2
    assert (
        "train needs the stage extract, which has not run. With the same settings, run `voxout extract` first"
        in messages
    )


@pytest.mark.parametrize("stage", [*STAGE_TITLES][1:])
def test_each_stage_is_a_command_that_needs_earlier_stages(capsys, cohort, tmp_path, stage):
    assert main([stage, str(cohort), str(tmp_path / "out")]) == 2
    assert f"{stage} needs the stage" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["map", "score", "report"])
def test_a_stage_on_a_folder_of_apply_says_which_command_brings_it_up_to_date(capsys, cohort, tmp_path, stage):
    """It asked to run `voxout map` first, which is not possible: the folder does not know its model."""
    out = OutputFolder(tmp_path)
    StageRecord("map", {"the detectors": "1234"}, {}).write(out.record("map"))
    code, messages = _run(capsys, stage, cohort, tmp_path)
    assert code == 2
    assert "was written by `voxout apply` with the model of another folder" in messages
    assert "Run `voxout apply MODEL COHORT OUT` again" in messages


def test_a_misspelt_setting_stops_before_anything_is_written(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "run", cohort, tmp_path / "out", "--set", "models.detektor.nu=0.1")
    assert code == 2
    assert "Did you mean models.detector?" in messages
    assert not (tmp_path / "out").exists()


def test_an_unknown_subject_is_named(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "prepare", cohort, tmp_path, "--subjects", "control001,nobody")
    assert code == 2
    assert "nobody is not in the cohort" in messages


@pytest.mark.usefixtures("warm_workers")
def test_only_chosen_subjects_are_prepared(capsys, cohort, tmp_path):
    assert _run(capsys, "check", cohort, tmp_path, *QUICK)[0] == 0
    code, messages = _run(capsys, "prepare", cohort, tmp_path, "--jobs", "1", "--subjects", "sub-control002")
    assert code == 0, messages
    assert "4 subjects are left for a later call" in messages
    assert [folder.name for folder in (tmp_path / "prepared").iterdir()] == ["sub-control002"]
    code, messages = _run(capsys, "extract", cohort, tmp_path)
    assert code == 2
    assert "extract needs the stage prepare, which has not run" in messages


@pytest.mark.usefixtures("warm_workers")
def test_a_chosen_subject_that_fails_is_reported(capsys, own_cohort, tmp_path):
    rows = list(csv.DictReader(own_cohort.open()))
    path = own_cohort.parent / rows[1]["t1w"]
    head = read_volume(path)
    noise = np.random.default_rng(0).random(head.voxels.shape, dtype=np.float32)
    write_volume(path, head.with_voxels(1000 * noise))
    assert _run(capsys, "check", own_cohort, tmp_path / "out", *QUICK)[0] == 0
    chosen = ["--jobs", "1", "--subjects", "control001,control002"]
    code, messages = _run(capsys, "prepare", own_cohort, tmp_path / "out", *chosen)
    assert code == 3, messages
    assert "FAILED sub-control002: " in messages and "3 subjects are left for a later call" in messages
    assert "sub-control002,prepare" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_broken_scan_is_listed_and_the_exit_code_is_3(capsys, tmp_path):
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=0, seed=1)
    rows = list(csv.DictReader(cohort.open()))
    (cohort.parent / rows[0]["t1w"]).write_bytes(b"no scan")
    code, messages = _run(capsys, "check", cohort, tmp_path / "out")
    assert code == 3
    assert "FAILED sub-control001" in messages
    failures = list(csv.DictReader((tmp_path / "out" / "failures.csv").open()))
    assert [(row["subject"], row["stage"]) for row in failures] == [("sub-control001", "check")]


def test_a_dry_run_writes_nothing(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "run", cohort, tmp_path / "out", "--dry-run")
    assert "a run takes about " in messages and " GB of memory and " in messages
    assert code == 0
    assert "check: would run, it has not run yet" in messages
    assert not (tmp_path / "out").exists()


def test_apply_needs_a_model(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "apply", tmp_path, cohort, tmp_path / "out")
    assert code == 2
    assert "holds no fitted model, expected the output folder of `voxout run`" in messages
    assert "or a packed model" in messages
    assert "no such file or folder" in _run(capsys, "apply", tmp_path / "none", cohort, tmp_path / "out")[1]


def test_an_unusable_device_gives_one_message(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "run", cohort, tmp_path / "out", "--device", "cuda:99")
    assert code == 2
    assert "--device cuda:99: not usable here" in messages


def test_an_output_folder_that_is_a_file_gives_one_message(capsys, cohort, tmp_path):
    (tmp_path / "out").write_text("")
    code, messages = _run(capsys, "check", cohort, tmp_path / "out")
    assert code == 2
    assert "cannot be created" in messages


def test_two_runs_cannot_use_one_folder(capsys, cohort, tmp_path):
    with sole_user(tmp_path):
        code, messages = _run(capsys, "check", cohort, tmp_path)
    assert code == 2
    assert "another voxout process is using this folder" in messages
    assert _run(capsys, "check", cohort, tmp_path)[0] == 0, "the folder is free again"


def test_the_folder_of_another_program_stays_as_it_is(capsys, cohort, tmp_path):
    theirs = {
        "config.yaml": "model: unet\n",
        "log.jsonl": '{"step": 1}\n',
        "failures.csv": "patient,why\nP1,moved\n",
        ".lock": "pid 4711",
    }
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    code, messages = _run(capsys, "check", cohort, tmp_path, "--preset", "fast")
    assert code == 2 and "holds .lock, config.yaml, failures.csv and 1 more and no record of voxout" in messages
    code, messages = _run(capsys, "check", cohort, tmp_path)
    assert code == 2 and f"{tmp_path}/config.yaml: Setting model is not known" in messages
    assert _run(capsys, "remove", tmp_path, "sub-01")[0] == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == theirs


def test_an_annotated_table_of_failures_is_kept(capsys, cohort, tmp_path):
    assert _run(capsys, "check", cohort, tmp_path)[0] == 0
    (tmp_path / "failures.csv").write_text("subject,why\nP1,called the ward\n")
    code, messages = _run(capsys, "check", cohort, tmp_path, "--seed", "5")
    assert code == 0
    assert "failures.csv is not as voxout wrote it; it is kept as set-aside/failures.csv" in messages
    assert "called the ward" in (tmp_path / "set-aside" / "failures.csv").read_text()
    assert {path.name for path in (tmp_path / "set-aside").iterdir()} == {"failures.csv"}


EMPTY_PATH = ": found an empty path, expected a file or folder. Write '.' for the current folder.\n"
EMPTY = [
    ["check", "cohort.csv", ""],
    ["check", "", "out"],
    ["check", "cohort.csv", "out", "--config", ""],
    ["report", "cohort.csv", "out", "--runs", "a="],
    ["apply", "", "cohort.csv", "out"],
    ["remove", "", "sub-01"],
    ["native", "out", "sub-01", "atlas.nii", ""],
    ["demo", ""],
    ["compare", "a", "", "--out", "out"],
    ["evaluate", "--maps", "maps", "--masks", "", "--out", "out"],
    ["evaluate", "--maps", "maps", "--out", ""],
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert EMPTY_PATH in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("jobs", ["0", "-3", "two"])
def test_jobs_is_at_least_one(capsys, cohort, tmp_path, jobs):
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(cohort), str(tmp_path), f"--jobs={jobs}"])
    assert stopped.value.code == 2
    assert f"found {jobs}, expected an integer of at least 1" in capsys.readouterr().err


def test_a_negative_seed_is_refused_at_once(capsys, cohort, tmp_path):
    code, messages = _run(capsys, "check", cohort, tmp_path, "--seed", "-1")
    assert code == 2
    assert "Setting seed is -1, expected greater than or equal to 0." in messages


@pytest.mark.parametrize("number", ["1_0", "٤٥", "1e3", "9" * 19])
@pytest.mark.parametrize("option", ["--seed", "--jobs", "--seeds"])
def test_numbers_that_only_a_program_reads_are_refused(capsys, cohort, tmp_path, option, number):
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(cohort), str(tmp_path), f"{option}={number}"])
    assert stopped.value.code == 2
    assert f"found {number}, expected an integer" in capsys.readouterr().err


def test_a_refused_setting_is_not_saved(capsys, cohort, tmp_path):
    assert _run(capsys, "check", cohort, tmp_path)[0] == 0
    code, messages = _run(capsys, "check", cohort, tmp_path, "--set", "preprocessing.modalities=[t1w,flair]")
    assert code == 2, messages
    assert _run(capsys, "check", cohort, tmp_path)[0] == 0


def test_a_dry_demo_writes_nothing(capsys, tmp_path):
    code, messages = _run(capsys, "demo", tmp_path / "demo", "--dry-run")
    assert code == 0
    assert "would make a synthetic cohort" in messages
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_the_work_is_done_with_a_closed_stream(cohort, tmp_path, closed):
    command = f"{sys.executable} -m voxout.pipeline.cli check {cohort} {tmp_path}/out --preset fast {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "records" / "check.json").is_file()


def test_a_full_stdout_is_not_taken_for_the_output_folder(tmp_path):
    command = f"{sys.executable} -m voxout.pipeline.cli demo {tmp_path}/out --dry-run > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("voxout: standard output: cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1


def test_a_closed_stdout_gives_no_traceback(tmp_path):
    # As in `voxout ... | head -1`.
    command = [sys.executable, "-m", "voxout.pipeline.cli", "demo", str(tmp_path / "out"), "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        messages = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in messages and "BrokenPipe" not in messages
