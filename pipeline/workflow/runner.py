"""Execution of stages in order: up-to-date stages are skipped, and an interrupted run is resumed."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest
from ...data_manifests.csv_file import csv_table
from ...data_manifests.errors import Failure, UserError, counted, private, without_names
from ..config.cluster_settings import ClusterSettings
from ..config.config import Config
from ..config.diff import changes
from .console import Console
from .engine import Engine
from .origin import Origin
from .ownership import write_own
from .records import Meter, StageRecord, sizes, versions
from .removal import remove_building_folder
from .replacement import Replacement
from .stage_titles import STAGE_TITLES
from .status import status_of, status_table


@dataclass(frozen=True)
class Run:
    """Everything that a stage may use.

    Attributes
    ----------
    manifest : Manifest
    config : Config
    out : OutputFolder
        Output folder of this run.
    model : OutputFolder
        Folder of the encoder and the detectors: `out`, or that of an earlier run when a model is applied.
    chosen : frozenset of str or None
        Keys of the subjects to process now; None: all.
    engine : Engine
    device : str
        A torch device.
    console : Console
    device_of_workers : str or None
        A torch device, or "auto", on the nodes of a cluster; None: `device`.
    training_devices : tuple of str
        Devices that an encoder is trained on together; empty: `device`.
    reference_runs : tuple of (name, path)
        Other runs, whose scores the report shows for comparison; an empty name means the folder's name.
    prepares_only : bool
        Whether the scans are prepared for a later call with more subjects.
    origin : Origin
        For the records of what is done.
    cluster : ClusterSettings or None
        Settings of the jobs of a queueing system in which subjects are worked on; None: there are none.
    """

    manifest: Manifest
    config: Config
    out: OutputFolder
    model: OutputFolder
    chosen: frozenset[str] | None
    engine: Engine
    device: str
    console: Console
    device_of_workers: str | None = None
    training_devices: tuple[str, ...] = ()
    reference_runs: tuple[tuple[str, Path], ...] = ()
    prepares_only: bool = False
    origin: Origin = field(default_factory=Origin)
    cluster: ClusterSettings | None = None

    @property
    def applies_a_model(self) -> bool:
        """Whether the model comes from an earlier run."""
        return self.model.root != self.out.root

    @property
    def needs_controls(self) -> bool:
        """Whether a model is fitted, now or by a later command on the same manifest."""
        return not (self.applies_a_model or self.prepares_only)


@dataclass(frozen=True)
class StageResult:
    """Result of the work of a stage."""

    outputs: Sequence[Path] = ()
    done: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    left: int = 0
    """Number of subjects that were not chosen, so that the stage is not finished."""
    summary: str = ""


@dataclass(frozen=True)
class Stage:
    """One step from scans to report.

    Attributes
    ----------
    name : str
    inputs : callable
        ``inputs(run)``: everything that the result depends on, by name (see `StageRecord.inputs`).
    work : callable
        ``work(run) -> StageResult``.
    parts : tuple of str
        Names in `PARTS` of the outputs that are replaced together. Empty for stages with a record per subject.
    goes_on : callable
        ``goes_on(before, now)``: whether outputs of an interrupted call with the inputs `before` may be used.
    begins_with : callable
        ``begins_with(run, files, going_on)``: reuses outputs of a finished or an interrupted call.
    needs : tuple of str
        Stages whose records it reads.
    retry_failed : bool
        Whether failed subjects are tried again without a change of inputs, since memory or disk may have changed.
    skip_reason : callable
        ``skip_reason(run)``: why there is nothing to do with the run's settings, or None. Outputs and record from other
        settings are kept, for a later run with those.
    preflight : callable
        ``preflight(run)``: warnings about errors of later stages. Shown at every call, since they depend on settings
        that are not inputs of this stage.
    """

    name: str
    inputs: Callable[[Run], Mapping[str, Any]]
    work: Callable[[Run], StageResult]
    parts: tuple[str, ...] = ()
    goes_on: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda before, now: before == now
    begins_with: Callable[[Run, Replacement, bool], None] = lambda run, files, going_on: None
    needs: tuple[str, ...] = ()
    retry_failed: bool = False
    skip_reason: Callable[[Run], str | None] = lambda run: None
    preflight: Callable[[Run], Sequence[str]] = lambda run: ()
    title: str = ""
    """For the terminal; by default that in `STAGE_TITLES`."""

    def files(self, run: Run) -> Replacement:
        """Return the outputs of the stage in a run."""
        return Replacement(run.out, self.name, self.parts, run.out.record(self.name))


def run_stages(
    names: Sequence[str], stages: Mapping[str, Stage], run: Run, *, dry_run: bool = False
) -> tuple[Failure, ...]:
    """Bring stages up to date, in order.

    Parameters
    ----------
    names : sequence of str
    stages : mapping from name to Stage
    run : Run
    dry_run : bool
        Only print what would be done.

    Returns
    -------
    tuple of Failure
        Subjects that failed in a stage; also written to ``failures.csv``.
    """
    among_chosen: tuple[Failure, ...] = ()
    for number, name in enumerate(names, start=1):
        stage = stages[name]
        label = f"[{number}/{len(names)}] {name}"
        if (why := stage.skip_reason(run)) is not None:
            run.console.say(f"{label}: {why}", stage=stage.name)
            continue
        if not dry_run:
            stage.files(run).complete()
        outdated = why_outdated(stage, run)
        if dry_run:
            run.console.say(f"{label}: {f'would run, {outdated.reason}' if outdated else 'up to date'}")
            if outdated and outdated.spreads:
                run.console.say("    the stages after it would run too")
                return ()
            continue
        if outdated is None:
            run.console.say(f"{label}: up to date, skipped", stage=stage.name)
        else:
            try:
                among_chosen = _do(stage, run, label, outdated.reason)
            except UserError as error:
                run.console.log(
                    "stopped", stage=stage.name, problems=[run.manifest.anonymous(p) for p in error.problems]
                )
                raise
            finally:
                failures = (*all_failures(run.out), *among_chosen)
                save_own(run, run.out.failures, failures_table(failures) if failures else None)
                save_own(run, run.out.status, status_table(status_of(run.out)))
        for warning in stage.preflight(run):
            run.console.warn(
                f"    warning: {warning}", kept=f"warning: {run.manifest.anonymous(warning)}", stage=stage.name
            )
    if dry_run:
        return ()
    remove_building_folder(run.out)
    return (*all_failures(run.out), *among_chosen)


def all_failures(out: OutputFolder) -> tuple[Failure, ...]:
    """Return the failed subjects, each with the first stage in which it failed."""
    failures: dict[str, Failure] = {}
    for name in STAGE_TITLES:
        record = StageRecord.read(out.record(name))
        for failure in record.failed if record else ():
            failures.setdefault(failure.key, failure)
    return tuple(failures.values())


@dataclass(frozen=True)
class Outdated:
    """Reason why a stage has to run, and whether later stages have to run, too."""

    reason: str
    spreads: bool = True


_NEW = Outdated("it has not run yet")


def why_outdated(stage: Stage, run: Run) -> Outdated | None:
    """Return why a stage has to run; None if its record is current."""
    record = StageRecord.read(run.out.record(stage.name))
    if record is None:
        return _NEW
    changed = changes(record.comparable_inputs, stage.inputs(run))
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        return Outdated("because " + "; ".join(changed[:3]) + more)
    if not record.is_complete(run.out.root):
        return Outdated("because some of its files are missing")
    if record.failed and stage.retry_failed:
        # If they fail again, later stages need not run.
        return Outdated(f"because {len(record.failed)} failed subject(s) are tried again", spreads=False)
    return None


def require_current(stage: Stage, stages: Mapping[str, Stage], run: Run) -> None:
    """Refuse to run a single stage while a stage that it needs has not run or is out of date."""
    for name in stage.needs:
        if stages[name].skip_reason(run) is not None:
            continue
        record = StageRecord.read(run.out.record(name))
        if record is None:
            raise UserError(f"{stage.name} needs the stage {name}, which has not run. {_advice(name)}")
        changed = changes(record.comparable_inputs, stages[name].inputs(run))
        if changed or not record.is_complete(run.out.root):
            what = "; ".join(changed[:3]) or "some of its files are missing"
            raise UserError(f"{stage.name} needs the stage {name}, which is out of date ({what}). {_advice(name)}")


def require_own_model(stage: Stage, run: Run) -> None:
    """Refuse to run a single stage in a folder of `voxout apply`, which does not keep the path of its model."""
    is_of_apply = run.out.record("map").is_file() and not run.out.record("fit").is_file()
    if is_of_apply and not run.applies_a_model and not {"fit", "map", "score"}.isdisjoint(stage.needs):
        raise UserError(
            f"{private(run.out.root, 'the output folder')}: was written by `voxout apply` with the model of another "
            f"folder, expected a folder of `voxout run` for the stage {stage.name} alone. Run `voxout apply MODEL "
            "COHORT OUT` again: what is up to date is skipped."
        )


def _advice(stage: str) -> str:
    return f"With the same settings, run `voxout {stage}` first, or `voxout run` for all stages."


def _do(stage: Stage, run: Run, label: str, reason: str) -> tuple[Failure, ...]:
    """Run a stage; return the failures if only some subjects were chosen, so that no record is kept."""
    run.console.say(
        f"{label}: {stage.title or STAGE_TITLES[stage.name]}" + ("" if reason == _NEW.reason else f" ({reason})")
    )
    inputs = json.loads(json.dumps(stage.inputs(run)))  # as read back from a record
    files = stage.files(run)
    stage.begins_with(run, files, files.begin(inputs, goes_on=stage.goes_on))
    began = datetime.now(UTC).isoformat()
    model = run.model if run.applies_a_model else files.built
    with Meter() as meter:
        work = stage.work(replace(run, out=files.built, model=model))
    run.console.say(
        f"    {work.summary or 'done'}, in {meter.wall_s:.0f} s, {meter.peak_memory_mb / 1024:.1f} GB at most",
        stage=stage.name,
        wall_s=meter.wall_s,
        peak_memory_mb=meter.peak_memory_mb,
    )
    # Text on disk names columns of the manifest, not files, since a file name may contain a patient's name.
    failed = tuple(Failure(f.key, f.stage, run.manifest.anonymous(f.reason)) for f in work.failed)
    warnings = tuple(run.manifest.anonymous(warning) for warning in work.warnings)
    # The terminal shows file names, so that users can find the files.
    for failure, kept in zip(work.failed, failed, strict=True):
        run.console.warn(f"    FAILED {failure.reason}", kept=f"FAILED {kept.reason}", stage=stage.name)
    for warning, kept in zip(work.warnings, warnings, strict=True):
        run.console.say(f"    warning: {warning}", kept=f"warning: {kept}", stage=stage.name)
    if work.left:
        are = "is" if work.left == 1 else "are"
        run.console.say(f"    {counted(work.left, 'subject')} {are} left for a later call", stage=stage.name)
        return failed
    record = StageRecord(
        stage=stage.name,
        inputs=inputs,
        outputs=sizes(run.out.root, work.outputs),
        done=work.done,
        failed=failed,
        warnings=warnings,
        device=run.device,
        started=began,
        wall_s=round(meter.wall_s, 2),
        peak_memory_mb=round(meter.peak_memory_mb, 1),
        versions=versions(),
        origin=run.origin.recorded(),
    )
    files.finish(record)
    return ()


def save_own(run: Run, path: Path, content: bytes | None) -> None:
    """Write a file at the top of the output folder, or delete it, and tell where a changed one is kept."""
    name, moved = path.name, write_own(run.out, path, content)
    if moved is not None:
        run.console.warn(f"note: {name} is not as voxout wrote it; it is kept as {moved}.")


def failures_table(failures: Collection[Failure]) -> bytes:
    """Return the content of ``failures.csv``, without private names."""
    rows = ([failure.key, failure.stage, without_names(failure.reason)] for failure in failures)
    return csv_table(["subject", "stage", "reason"], rows)
