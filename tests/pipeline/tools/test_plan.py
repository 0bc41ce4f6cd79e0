"""The plan of a run: sizes against exact shapes, times against measured ones, laws, and the command."""

import argparse
import os

import numpy as np
import pytest
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.models.settings import FEWEST_TO_LEARN_FROM
from voxout.pipeline.cli.main import main
from voxout.pipeline.cli.shared_options import gigabytes
from voxout.pipeline.config.cluster_settings import ClusterSettings
from voxout.pipeline.config.config import load_config
from voxout.pipeline.tools import plan, plan_figures
from voxout.pipeline.tools.machine_speed import probe_s, slowness
from voxout.pipeline.tools.plan import Heads, plan_run, shortages, size_text, what_is_left
from voxout.pipeline.tools.plan_of_jobs import jobs_within, memory_line, memory_shortage
from voxout.pipeline.workflow.console import duration

MEASURED = [
    "models.ensemble.scorers=[ocsvm,derived_features,intensity,extension]",
    "models.ensemble.mirrored_controls=false",
]
"""Scorers of the runs that were measured."""
WITHOUT_LEARNED = ["models.ensemble.scorers=[ocsvm,prototypes]"]
GOAL = 1.5


def stages_of(heads, config, jobs=2, cores=2, slow=1.0):
    return {stage.stage: stage for stage in plan_run(heads, config, jobs=jobs, cores=cores, slowness=slow)}


@pytest.mark.parametrize(
    ("preset", "heads", "measured_s"),
    [
        # docs/method.md#cost
        ("default", Heads(60, 0, 20, 8.0), {"extract": 15, "train": 63, "fit": 219, "map": 26, "score": 16}),
        # docs/method.md#at-1-mm, nothing else running
        ("fine-1mm", Heads(15, 0, 2), {"fit": 602}),
        ("fine-1mm", Heads(60, 0, 2), {"fit": 42 * 60}),
    ],
)
def test_times_agree_with_measured_ones(preset, heads, measured_s):
    stages = stages_of(heads, load_config(preset=preset, overrides=MEASURED))
    for name, seconds in measured_s.items():
        assert seconds / GOAL < stages[name].wall_s < seconds * GOAL, name


def test_memory_agrees_with_measured_peaks():
    config = load_config(preset="fine-1mm", overrides=WITHOUT_LEARNED)
    for controls, measured_gb in ((15, 5.2), (60, 6.0)):
        assert stages_of(Heads(controls, 0, 2), config)["fit"].memory_gb == pytest.approx(measured_gb, rel=0.2)


def test_sizes_agree_with_a_run_at_3_mm():
    """The demo's cohort: 14 training controls, 3 held out, 4 patients; bytes of its folders."""
    heads, config = Heads(14, 3, 4, 8.0), load_config(preset="demo", overrides=MEASURED)
    stages, work = stages_of(heads, config), plan._Work(heads, config)
    assert stages["prepare"].disk_bytes == pytest.approx(51_622_712, rel=0.15)
    assert stages["extract"].disk_bytes == pytest.approx(64_849_779, rel=0.01)
    assert work.latents_bytes == pytest.approx(54_687_695, rel=0.01)
    assert work.detectors_bytes == pytest.approx(55_733_592, rel=0.02)
    assert sum(stage.disk_bytes for stage in stages.values()) == pytest.approx(257e6, rel=0.1)


@pytest.mark.parametrize("spacing", [5.0, 3.0])
def test_the_template_is_as_large_as_said(spacing):
    from voxout.preprocessing.registration.template import load_template

    mask = load_template(spacing).brain_mask
    work = plan._Work(Heads(20, 5, 0), load_config(overrides=[f"preprocessing.spacing_mm={spacing}"]))
    assert work.voxels == pytest.approx(mask.voxels.sum(), rel=0.02)
    assert work.grid_voxels == pytest.approx(np.prod(mask.grid.size_vox), rel=0.05)


def test_more_work_takes_longer_and_more_jobs_shorten_it():
    config = load_config()
    few, many = stages_of(Heads(20, 5, 5), config), stages_of(Heads(40, 10, 10), config)
    fast = stages_of(Heads(20, 5, 5), config, jobs=4, cores=4)
    slow = stages_of(Heads(20, 5, 5), config, slow=2.0)
    fine = stages_of(Heads(20, 5, 5), load_config(preset="fine-1mm"))
    for name in few:
        assert many[name].wall_s >= few[name].wall_s >= fast[name].wall_s, name
        assert slow[name].wall_s == pytest.approx(2 * few[name].wall_s), name
        assert many[name].disk_bytes >= few[name].disk_bytes, name
    assert fine["extract"].disk_bytes == pytest.approx(8 * few["extract"].disk_bytes, rel=0.001)
    assert fast["prepare"].memory_gb > few["prepare"].memory_gb
    # More jobs than cores are not faster, and take memory.
    crowded = stages_of(Heads(20, 5, 5), config, jobs=9, cores=2)["prepare"]
    assert crowded.wall_s == few["prepare"].wall_s and crowded.memory_gb > few["prepare"].memory_gb


def test_what_is_not_used_costs_nothing():
    heads = Heads(FEWEST_TO_LEARN_FROM, 5, 5)
    assert "train" not in stages_of(heads, load_config(preset="fast"))
    few = Heads(FEWEST_TO_LEARN_FROM - 1, 5, 5)
    with_learned, without = (stages_of(few, load_config(overrides=o)) for o in ([], WITHOUT_LEARNED))
    assert with_learned == without, "too few controls to learn from"
    assert stages_of(heads, load_config())["fit"].wall_s > 1.7 * with_learned["fit"].wall_s
    one, three = (stages_of(heads, load_config(seeds=n)) for n in (1, 3))
    assert three["train"].wall_s == pytest.approx(3 * one["train"].wall_s)


def test_contrast_with_edits_takes_time():
    heads, contrast = Heads(20, 5, 5), "models.contrast.weight=1"
    overrides = (
        [],
        [contrast],
        [contrast, "models.contrast.copies=50"],
        [contrast, "models.training.guided_steps=3000"],
    )
    without, eight, fifty, long = (stages_of(heads, load_config(overrides=o))["train"].wall_s for o in overrides)
    assert without < eight < fifty
    assert eight < long
    # 50 controls at 2 mm, cubes of 10 mm, 6,000 steps: 1,400 s of CPU time.
    learnt = [contrast, "models.encoder.patch_size_mm=10", "models.training.guided_steps=3000"]
    planned_s = 2 * stages_of(Heads(50, 10, 0), load_config(overrides=learnt))["train"].wall_s
    assert 1 / GOAL < planned_s / 1400 < GOAL


def test_the_probe_is_short_and_repeatable():
    first, second = probe_s(), probe_s()
    assert first < 2 and 0.4 < first / second < 2.5
    assert 0.2 <= slowness() <= 5


def test_temporary_files_count_for_the_space_that_is_needed():
    """60 controls and their copies at 2 mm, 16 latents, 9 confounds: 5.9 KB a voxel, as the arrays have."""
    heads = Heads(60, 0, 5)
    for spacing, voxels in ((2.0, 235_366), (1.0, 8 * 235_366)):
        stages = plan_run(heads, load_config(overrides=[f"preprocessing.spacing_mm={spacing}"]), jobs=2, cores=2)
        fit = next(stage for stage in stages if stage.stage == "fit")
        moments = 6 * (16 * 4 + 16 * 17 / 2 * 4 + 9 * 16 * 2)
        assert fit.temporary_bytes == pytest.approx(voxels * (moments + 120 * 2 * 4), rel=0.02)
        before_map = plan.disk_bytes(stages[: stages.index(fit) + 1])
        assert plan.most_disk_bytes(stages) == max(plan.disk_bytes(stages), before_map + fit.temporary_bytes)


def test_prototypes_are_as_large_as_said():
    """31,467 blocks at 2 mm, written as 20.7 MB."""
    work = plan._Work(Heads(60, 0, 5), load_config(overrides=["models.ensemble.scorers=[prototypes]"]))
    assert plan_figures.PROTOTYPES_BYTES * work.voxels / work.block_voxels == pytest.approx(20_672_696, rel=0.02)


def test_shortages(tmp_path, monkeypatch):
    stages = plan_run(Heads(20, 5, 5), load_config(), jobs=2, cores=2)
    assert shortages(stages, tmp_path / "not" / "there") == []
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 10**9}))
    disk, memory = shortages(stages, tmp_path)
    assert disk.startswith("the disk has 1 MB free, and the run needs about 2.")
    assert memory.startswith("the machine has 1.0 GB of memory, and prepare needs about 3.")


def test_on_a_cluster_this_machine_has_no_workers_and_jobs_share_their_memory():
    """Four subjects at once in a job: four workers of prepare, 1.45 GB each (docs/results.md#preparation)."""
    heads, config = Heads(20, 5, 5), load_config()
    here = stages_of(heads, config)
    there = {s.stage: s for s in plan_run(heads, config, jobs=2, cores=2, on_nodes=8)}
    assert there["prepare"].wall_s == pytest.approx(here["prepare"].wall_s * 4 / 15), "30 heads by eight, not by two"
    assert there["prepare"].memory_gb == plan_figures.MAIN_GB < here["prepare"].memory_gb
    assert [s.stage for s in there.values() if s.worker_gb] == ["prepare", "map", "report"]
    enough, few = (ClusterSettings(cores=4, memory_gb=gb) for gb in (5.9, 4.0))
    assert memory_shortage(list(there.values()), enough) is None
    words = "a job of prepare needs about 5.8 GB of memory for 4 subjects at once, and cluster.memory_gb is 4"
    shortage = memory_shortage(list(there.values()), few)
    assert shortage and shortage.startswith(words) and shortage.endswith("Set cluster.memory_gb=6, or cluster.cores=2")
    assert memory_shortage([there["fit"], there["score"]], few) is None, "these stages have no jobs"
    assert "prepare 5.8 GB, map 3.5 GB, report 3.2 GB; cluster.memory_gb is 4" in memory_line([*there.values()], few)


def test_a_fitted_model_needs_no_fit(tmp_path):
    manifest = read_manifest(small_cohort(tmp_path / "cohort", controls=2, patients=3, seed=1))
    heads = Heads.to_map(manifest)
    assert (heads.train, heads.mapped, heads.total) == (0, 5, 5)
    stages = stages_of(heads, load_config())
    assert stages["map"] == stages_of(Heads(40, 2, 3, heads.voxel_mm3), load_config())["map"]


def test_of_a_started_run_only_the_rest_is_foretold():
    """Of 30 heads 24 are prepared, of 10 maps none is made; check, extract and train are done."""
    heads = Heads(20, 5, 5)
    whole = stages_of(heads, load_config())
    left = {"prepare": 24, "fit": None, "map": 0}
    rest = {stage.stage: stage for stage in what_is_left([*whole.values()], heads, left)}
    assert list(rest) == ["prepare", "fit", "map"]
    assert rest["prepare"].wall_s == pytest.approx(whole["prepare"].wall_s / 5)
    assert rest["prepare"].disk_bytes == pytest.approx(whole["prepare"].disk_bytes / 5, abs=1)
    assert rest["prepare"].memory_gb == whole["prepare"].memory_gb
    assert (rest["fit"], rest["map"]) == (whole["fit"], whole["map"])


@pytest.mark.usefixtures("warm_workers")
def test_a_dry_run_foretells_what_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("voxout.pipeline.cli.plan.slowness", lambda: 1.0)
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=1, seed=1)
    command = [str(cohort), str(tmp_path / "out"), "--preset", "demo"]
    assert main(["run", *command, "--dry-run"]) == 0
    assert "\na run takes about " in capsys.readouterr().out
    assert main(["check", *command]) == 0
    capsys.readouterr()
    assert main(["run", *command[:2], "--dry-run"]) == 0
    assert "\nwhat is left of the run takes about " in capsys.readouterr().out


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stand-in, so that jobs could be submitted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("sbatch")
def test_a_dry_run_on_a_cluster_checks_the_disk_and_the_memory_of_jobs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("voxout.pipeline.cli.plan.slowness", lambda: 1.0)
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=1, seed=1)
    command = ["run", str(cohort), str(tmp_path / "out"), "--cluster", "slurm", "--dry-run"]
    settings = ["--set", "cluster.cores=4", "--set", "cluster.jobs=3"]
    assert main([*command, *settings, "--set", "cluster.memory_gb=8"]) == 0
    lines = capsys.readouterr().out
    assert "with 3 jobs of 4 cores as fast as those of this machine" in lines
    assert "memory of a job with 4 subjects at once: prepare 5.8 GB" in lines and "warning" not in lines
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    assert main([*command, *settings]) == 0
    lines = capsys.readouterr().out
    assert "warning: the disk has 1 MB free, and the run needs about" in lines
    assert lines.count("warning: a job of prepare needs about 5.8 GB") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_with_a_scheduler_says_what_it_cannot_know(tmp_path, capsys, monkeypatch):
    """It named jobs and memory of this machine, where no subject is worked on."""
    monkeypatch.setattr("voxout.pipeline.cli.plan.slowness", lambda: 1.0)
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=1, seed=1)
    command = ["run", str(cohort), str(tmp_path / "out"), "--scheduler", "tls://node7:8786", "--dry-run"]
    took = {}
    for jobs in (2, 6):
        assert main([*command, "--jobs", str(jobs)]) == 0
        lines = capsys.readouterr().out
        (line,) = [line for line in lines.splitlines() if line.startswith("a run takes about")]
        assert f"with {jobs} workers as fast as this machine" in line
        took[jobs] = line.partition(" with ")[0]
        assert "how many workers the scheduler has" in lines and "a worker needs up to 1.4 GB" in lines
    assert took[2] != took[6] and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sbatch", "warm_workers")
def test_too_little_memory_for_jobs_is_told_before_a_run_starts(tmp_path, capsys):
    """The queueing system refuses the job, so that the run ends with the first stage that needs one."""
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=1, seed=1)
    command = ["run", str(cohort), str(tmp_path / "out"), "--cluster", "slurm", "--set", "cluster.memory_gb=1"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "warning: a job of prepare needs about 1.4 GB" in printed.out + printed.err
    assert "sbatch refused a job" in printed.err
    assert main([*command, "--set", "cluster.memory_gb=2"]) == 2
    printed = capsys.readouterr()
    assert "a job of prepare needs" not in printed.out + printed.err


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("voxout.pipeline.cli.plan.slowness", lambda: 1.0)
    cohort = small_cohort(tmp_path / "cohort", controls=5, patients=1, seed=1)
    assert main(["plan", str(cohort), "--spacing", "3", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 patient; 3 mm; 1 job on" in lines[0]
    assert [line.split()[0] for line in lines[1:11]] == [
        *("stage", "check", "prepare", "extract", "train", "fit", "map", "score", "report", "all")
    ]
    assert main(["plan", "--controls", "60", "--patients", "10", "--preset", "fast", "--jobs", "8"]) == 0
    assert capsys.readouterr().out.startswith("48 training controls, 12 held out, 10 patients; 2 mm; 8 jobs on")
    assert main(["plan", "--controls", "3"]) == 0
    assert "warning: fit will stop: 2 training controls, expected at least 3" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort"], "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "found neither, expected COHORT or --controls"),
        (["x.csv", "--controls", "3"], "found both"),
        (["--controls", "1"], "found 1 control and 0 patients"),
        (["--controls", "9", "--spacing", "9"], "Setting preprocessing.spacing_mm is 9.0"),
    ],
)
def test_commands_that_cannot_be_planned(capsys, arguments, problem):
    assert main(["plan", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_text():
    assert [duration(s) for s in (0.2, 42, 90, 3000, 3900, 40_000)] == [
        *("1 s", "42 s", "2 min", "50 min", "1 h 05 min", "11 h")
    ]
    assert [size_text(n) for n in (4e5, 3.4e8, 2.25e9)] == ["0 MB", "340 MB", "2.2 GB"]
    assert plan_figures.PROBE_S > 0


def test_as_many_subjects_at_a_time_as_the_memory_is_enough_for():
    heads, config, stages = Heads(0, 0, 20), load_config(), ("prepare", "map", "report")
    needs = {jobs: jobs_within(1e3, heads, config, stages, jobs)[1] for jobs in (1, 2, 3, 8)}
    assert needs[1] < needs[2] < needs[3] < needs[8]
    assert jobs_within(1e3, heads, config, stages, 8) == (8, needs[8])
    assert jobs_within(needs[3] + 0.01, heads, config, stages, 8) == (3, needs[3])
    # Less than one needs: one, and what it needs is told.
    assert jobs_within(0.1, heads, config, stages, 8) == (1, needs[1])


@pytest.mark.parametrize(("text", "expected"), [("16", 16.0), ("16GB", 16.0), ("2.5 gb", 2.5), ("16000MB", 16.0)])
def test_amounts_of_memory(text, expected):
    assert gigabytes(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "many", "16TB", "", "1e3"])
def test_no_amount_of_memory(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected an amount of memory such as 16GB"):
        gigabytes(text)
