"""What another seed repeats, and seeds that change nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.pipeline.config.config import load_config
from voxout.pipeline.run import RunOptions, run_pipeline
from voxout.pipeline.stages.order import STAGES
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.runner import Run, why_outdated


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with ten prepared controls."""
    records = [SubjectRecord(f"{n:02}", "control", {"t1w": tmp_path / f"{n}.nii"}) for n in range(10)]
    for record in records:
        record.images["t1w"].write_text(record.key)
    manifest, out = Manifest(tuple(records)), OutputFolder(tmp_path / "out")
    run = Run(manifest, load_config(), out, out, None, Engine(1), "cpu", Console())
    keys = tuple(record.key for record in records)
    StageRecord("check", {}, {}, done=keys).write(out.record("check"))
    StageRecord("prepare", STAGES["prepare"].inputs(run), {}, done=keys).write(out.record("prepare"))
    for record in records:
        StageRecord("prepare", {"t1w": record.key}, {}).write(out.subject_record(record))
    StageRecord("extract", STAGES["extract"].inputs(run), {}).write(out.record("extract"))
    return run


def test_another_seed_draws_another_split_and_prepares_nothing_anew(run):
    other = replace(run, config=load_config(seed=1))
    assert why_outdated(STAGES["extract"], run) is None
    assert why_outdated(STAGES["prepare"], other) is None
    outdated = why_outdated(STAGES["extract"], other)
    assert outdated is not None and "held-out controls" in outdated.reason


def test_scans_prepared_with_seed_0_of_before_stay_up_to_date(run):
    """Their records hold the seed of the run as an input."""
    before = STAGES["prepare"].inputs(run)
    assert before["settings.seed"] == 0
    other = replace(run, config=load_config(seed=7))
    StageRecord("prepare", {**before, "settings.seed": 7}, {}, done=()).write(run.out.record("prepare"))
    outdated = why_outdated(STAGES["prepare"], other)
    assert outdated is not None and "seed" in outdated.reason, "with another seed, they are prepared once more"


def test_with_a_given_split_the_patches_are_kept_too(run):
    split = ["train", "held_out"] * 5
    given = [replace(record, split=one) for record, one in zip(run.manifest, split, strict=True)]
    run = replace(run, manifest=Manifest(tuple(given)))
    StageRecord("extract", STAGES["extract"].inputs(run), {}).write(run.out.record("extract"))
    assert why_outdated(STAGES["extract"], replace(run, config=load_config(seed=1))) is None
    assert why_outdated(STAGES["train"], replace(run, config=load_config(seed=1))) is not None


@pytest.mark.parametrize(("preset", "noted"), [("fast", True), ("default", False)])
def test_seeds_without_an_encoder_are_noted(run, tmp_path, capsys, preset, noted):
    options = RunOptions(run.manifest, tmp_path / "new", ("check",), preset=preset, seeds=3, dry_run=True)
    run_pipeline(options, Console)
    assert ("note: 3 seeds give the same map as one here" in capsys.readouterr().err) == noted
