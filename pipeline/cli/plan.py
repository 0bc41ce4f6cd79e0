"""`voxout plan`, and the line about a run that `voxout check` and ``--dry-run`` print."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...data_manifests.cohort.manifest import read_manifest
from ...data_manifests.errors import UserError, counted
from ..config.config import read_settings
from ..stages.order import STAGES
from ..tools.machine_speed import slowness
from ..tools.plan import Heads, closing_line, plan_run, shortages, table_lines, what_is_left
from ..tools.plan_of_jobs import memory_line, memory_shortage, subjects_at_once, unknown_workers
from ..workflow.engine import usable_cores
from ..workflow.left_to_do import left_to_do
from ..workflow.runner import Run
from ..workflow.standard_streams import write_line


def print_plan(options: argparse.Namespace) -> None:
    """Print the plan of a run as a table.

    Raises
    ------
    UserError
        Neither a cohort nor a number of controls, or both; a cohort or settings that cannot be used.
    """
    if (options.cohort is None) == (options.controls is None):
        found = "both" if options.cohort is not None else "neither"
        raise UserError(f"plan: found {found}, expected COHORT or --controls. Give one of them.")
    given = [*options.set, *([f"preprocessing.spacing_mm={options.spacing}"] if options.spacing is not None else [])]
    settings = read_settings(
        options.config, preset=options.preset, overrides=given, seed=options.seed, seeds=options.seeds
    )
    config, cores = settings.config, usable_cores()
    if options.cohort is not None:
        heads = Heads.of_cohort(read_manifest(options.cohort), config)
    elif options.patients < 0 or options.controls < 2:
        raise UserError(
            f"plan: found {counted(options.controls, 'control')} and {options.patients} patients, expected at least 2 "
            "controls and no negative number."
        )
    else:
        heads = Heads.counted(options.controls, options.patients, config.data_manifests.held_out_share)
    jobs, slow = options.jobs or cores, slowness()
    stages = plan_run(heads, config, jobs=jobs, cores=cores, slowness=slow)
    lines = [
        f"{counted(heads.train, 'training control')}, {heads.held_out} held out, {counted(heads.patients, 'patient')}; "
        f"{config.preprocessing.spacing_mm:g} mm; {counted(jobs, 'job')} on {counted(cores, 'core')}, each "
        f"{slow:.1f} times as slow as those of the measurements",
        *table_lines(stages),
        "Without a GPU. Measured figures: docs/before-you-start.md#time-memory-and-gpu",
        *(f"warning: {shortage}" for shortage in (*_too_few(heads.train), *shortages(stages, Path()))),
    ]
    for line in lines:
        write_line(line, sys.stdout)


def _too_few(train: int) -> tuple[str, ...]:
    """Return what the stage fit would say of so few training controls."""
    from ...models.anomaly.calibration import require_enough_participants

    try:
        require_enough_participants([f"sub-{number}" for number in range(train)])
    except UserError as error:
        return (f"fit will stop: {error}",)
    return ()


def closing_lines(run: Run, names: Sequence[str]) -> list[str]:
    """Return the plan of a run in a line, and what this machine, the disk or the jobs of a cluster lack.

    Of a run that applies a model, the stages `names` count; of one that was started before, what is left of them.
    """
    cluster, jobs = run.cluster, run.engine.jobs
    try:
        heads = Heads.to_map(run.manifest) if run.applies_a_model else Heads.of_cohort(run.manifest, run.config)
    except UserError:  # the stage check says what is wrong with them
        return []
    joined = cluster is None and run.device_of_workers is not None
    on_nodes = subjects_at_once(cluster) if cluster is not None else jobs * joined
    stages = plan_run(heads, run.config, jobs=jobs, cores=usable_cores(), slowness=slowness(), on_nodes=on_nodes)
    if run.applies_a_model:
        stages = [stage for stage in stages if stage.stage in names]
    what, more = "a run", "" if run.applies_a_model else " (by stage: `voxout plan`)"
    if len(names) > 1 and run.out.record("check").is_file():
        stages = what_is_left(stages, heads, left_to_do(names, STAGES, run))
        what, more = "what is left of the run", ""
        if not stages:
            return ["nothing is left to do"]
    warnings, lines = shortages(stages, run.out.root), []
    where = f"{counted(jobs, 'job')} on this machine"
    if cluster is not None:
        where = f"{counted(cluster.jobs, 'job')} of {counted(cluster.cores, 'core')} as fast as those of this machine"
        lines.append(memory_line(stages, cluster))
        warnings += [text for text in [memory_shortage(stages, cluster)] if text is not None]
    elif joined:
        where = f"{counted(jobs, 'worker')} as fast as this machine"
        lines.append(unknown_workers(stages))
    return [
        closing_line(stages, where, what) + more,
        *lines,
        *(f"warning: {text}" for text in warnings),
    ]
