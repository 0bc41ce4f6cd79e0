"""Which stages of a started run are left, and for how many subjects of each nothing is to be done."""

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import Failure
from voxout.pipeline.config.config import Config
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.left_to_do import left_to_do
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.runner import Run, Stage, StageResult

SUBJECTS = tuple(SubjectRecord(name, "control", {}) for name in ("01", "02", "03"))
NAMES = ("check", "prepare", "train", "fit", "map")
INPUTS = {"settings.spacing": 2.0}


def stages(skipped=()):
    return {
        name: Stage(
            name,
            lambda run: INPUTS,
            lambda run: StageResult(),
            retry_failed=True,
            skip_reason=lambda run, name=name: "not needed" if name in skipped else None,
        )
        for name in NAMES
    }


@pytest.fixture
def run(tmp_path):
    out = OutputFolder(tmp_path / "out")
    return Run(Manifest(SUBJECTS), Config(), out, out, None, Engine(1), "cpu", Console(verbosity=0))


def finish(run, *names, inputs=INPUTS, failed=()):
    for name in names:
        StageRecord(name, inputs, {}, failed=failed).write(run.out.record(name))


def prepare(run, *subjects, inputs=INPUTS, failed=()):
    for subject in subjects:
        StageRecord("prepare", inputs | {"t1w": "a hash"}, {}, failed=failed).write(run.out.subject_record(subject))


def test_nothing_was_done(run):
    assert left_to_do(NAMES, stages(), run) == {"check": None, "prepare": 0, "train": None, "fit": None, "map": 0}


def test_all_is_done(run):
    finish(run, *NAMES)
    assert left_to_do(NAMES, stages(), run) == {}


def test_prepared_scans_count_and_unneeded_stages_do_not(run):
    finish(run, "check")
    prepare(run, *SUBJECTS[:2])
    assert left_to_do(NAMES, stages(skipped=["train"]), run) == {"prepare": 2, "fit": None, "map": 0}


def test_failed_scans_and_those_of_other_settings_are_prepared_again(run):
    finish(run, "check")
    prepare(run, SUBJECTS[0], failed=(Failure("sub-01", "prepare", "failed"),))
    prepare(run, SUBJECTS[1], inputs={"settings.spacing": 1.0})
    prepare(run, SUBJECTS[2])
    assert left_to_do(NAMES, stages(), run)["prepare"] == 1


def test_a_longer_cohort_keeps_its_prepared_scans(run):
    """The stage check has other inputs, so that all stages run; the scans that were prepared before are found."""
    finish(run, *NAMES, inputs={"settings.spacing": 2.0, "a row more": 1})
    prepare(run, *SUBJECTS[:2])
    assert left_to_do(NAMES, stages(), run) == {"check": None, "prepare": 2, "train": None, "fit": None, "map": 0}


def test_only_failed_scans_are_tried_again(run):
    finish(run, *NAMES)
    finish(run, "prepare", failed=(Failure("sub-03", "prepare", "failed"),))
    prepare(run, *SUBJECTS[:2])
    assert left_to_do(NAMES, stages(), run) == {"prepare": 2}
