"""Runs stages in order: skips what is done, says why a stage is done again, goes on where a killed run stopped."""

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest
from ...data_manifests.errors import Failure, UserError, without_names
from ..config.config import Config
from ..config.diff import changes
from .console import Console
from .engine import Engine
from .records import Meter, StageRecord, sizes, versions
from .replacement import Replacement, remove_building_folder
from .stage_titles import STAGE_TITLES


@dataclass(frozen=True)
class Run:
    """Everything a stage may ask for.

    Attributes
    ----------
    manifest : Manifest
    config : Config
    out : OutputFolder
        Where this run writes.
    model : OutputFolder
        Where the trained encoder and detectors lie: `out`, or another run's folder when a model is applied.
    chosen : frozenset of str or None
        Keys of the subjects to work on now; None: all.
    engine : Engine
    device : str
        A torch device.
    console : Console
    reference_runs : tuple of (name, path)
        Other runs, whose figures the report shows beside its own; an empty name means the folder's.
    """

    manifest: Manifest
    config: Config
    out: OutputFolder
    model: OutputFolder
    chosen: frozenset[str] | None
    engine: Engine
    device: str
    console: Console
    reference_runs: tuple[tuple[str, Path], ...] = ()

    @property
    def applies_a_model(self) -> bool:
        """Whether the model comes from an earlier run."""
        return self.model.root != self.out.root


@dataclass(frozen=True)
class StageResult:
    """What the work of a stage came to."""

    outputs: Sequence[Path] = ()
    done: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    left: int = 0
    """Subjects that were not chosen: the stage is not finished."""
    summary: str = ""


@dataclass(frozen=True)
class Stage:
    """One step from scans to report.

    Attributes
    ----------
    name : str
    inputs : callable
        ``inputs(run)``: everything its result depends on, by name (see `StageRecord.inputs`).
    work : callable
        ``work(run) -> Work``.
    parts : tuple of str
        Of `PARTS`: what it builds as a whole. Stages that keep a record for every subject build subject by subject.
    goes_on : callable
        ``goes_on(before, now)``: whether what an interrupted call with other inputs has built may be used.
    begins_with : callable
        ``begins_with(run, files, going_on)``: takes over what a finished or an interrupted call has built.
    needs : tuple of str
        Stages whose records it reads.
    retry_failed : bool
        Whether subjects that failed are tried again although nothing has changed: memory or disk may have.
    skip_reason : callable
        ``skip_reason(run)``: why there is nothing to do under the run's settings, or None. What the stage did under
        others stays, record and all: whoever goes back to them finds it.
    preflight : callable
        ``preflight(run)``: what a later stage will stop for. Told at every call: it follows from settings for which
        nothing has to be done again.
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

    def files(self, run: Run) -> Replacement:
        """What it builds in a run."""
        return Replacement(run.out, self.name, self.parts, run.out.record(self.name))


def run_stages(stages: Sequence[Stage], run: Run, *, dry_run: bool = False) -> tuple[Failure, ...]:
    """Bring every stage up to date, in order.

    Returns
    -------
    tuple of Failure
        Subjects that a stage gave up; also written to ``failures.csv``.
    """
    among_chosen: tuple[Failure, ...] = ()
    for number, stage in enumerate(stages, start=1):
        label = f"[{number}/{len(stages)}] {stage.name}"
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
            run.console.say(f"{label}: done before, skipped", stage=stage.name)
        else:
            try:
                among_chosen = _do(stage, run, label, outdated.reason)
            except UserError as error:
                run.console.log(
                    "stopped", stage=stage.name, problems=[run.manifest.anonymous(p) for p in error.problems]
                )
                raise
            finally:
                write_failures(run.out.failures, (*all_failures(run.out), *among_chosen))
        for doubt in stage.preflight(run):
            run.console.warn(
                f"    warning: {doubt}", kept=f"warning: {run.manifest.anonymous(doubt)}", stage=stage.name
            )
    if dry_run:
        return ()
    remove_building_folder(run.out)
    return (*all_failures(run.out), *among_chosen)


def all_failures(out: OutputFolder) -> tuple[Failure, ...]:
    """Subjects that some stage gave up; the first one that did is the one that says why."""
    failures: dict[str, Failure] = {}
    for name in STAGE_TITLES:
        record = StageRecord.read(out.record(name))
        for failure in record.failed if record else ():
            failures.setdefault(failure.key, failure)
    return tuple(failures.values())


@dataclass(frozen=True)
class Outdated:
    """Why a stage has to run, in words, and whether those after it have to run too."""

    reason: str
    spreads: bool = True


_NEW = Outdated("it has not run yet")


def why_outdated(stage: Stage, run: Run) -> Outdated | None:
    """None where the stage's record is current."""
    record = StageRecord.read(run.out.record(stage.name))
    if record is None:
        return _NEW
    changed = changes(record.inputs, stage.inputs(run))
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        return Outdated("because " + "; ".join(changed[:3]) + more)
    if not record.whole(run.out.root):
        return Outdated("because files of it are missing")
    if record.failed and stage.retry_failed:
        # If they fail again, nothing has changed for the others.
        return Outdated(f"because {len(record.failed)} subject(s) failed: trying them again", spreads=False)
    return None


def require_current(stage: Stage, stages: Mapping[str, Stage], run: Run) -> None:
    """Refuse to run a stage on its own while one that it reads is missing or out of date."""
    for name in stage.needs:
        if stages[name].skip_reason(run) is not None:
            continue
        record = StageRecord.read(run.out.record(name))
        if record is None:
            raise UserError(f"{stage.name} needs the stage {name}, which has not run. {_advice(name)}")
        changed = changes(record.inputs, stages[name].inputs(run))
        if changed or not record.whole(run.out.root):
            what = "; ".join(changed[:3]) or "files of it are missing"
            raise UserError(f"{stage.name} needs the stage {name}, which is out of date ({what}). {_advice(name)}")


def _advice(stage: str) -> str:
    return f"With the same settings, run `voxout {stage}` first, or `voxout run` for all that is missing."


def _do(stage: Stage, run: Run, label: str, reason: str) -> tuple[Failure, ...]:
    """Run a stage; who failed, where only some subjects were chosen and no record is kept to say so."""
    run.console.say(f"{label}: {STAGE_TITLES[stage.name]}" + ("" if reason == _NEW.reason else f" ({reason})"))
    inputs = json.loads(json.dumps(stage.inputs(run)))  # as they are read back from a record
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
    # What is kept on disk names columns of the manifest, not files: a file may bear a patient's name.
    failed = tuple(Failure(f.key, f.stage, run.manifest.anonymous(f.reason)) for f in work.failed)
    warnings = tuple(run.manifest.anonymous(warning) for warning in work.warnings)
    # The terminal may name files: whoever sits there has to find them.
    for messages, kept in zip(work.failed, failed, strict=True):
        run.console.warn(f"    FAILED {messages.reason}", kept=f"FAILED {kept.reason}", stage=stage.name)
    for messages, kept in zip(work.warnings, warnings, strict=True):
        run.console.say(f"    warning: {messages}", kept=f"warning: {kept}", stage=stage.name)
    if work.left:
        run.console.say(f"    {work.left} subjects are left for another call", stage=stage.name)
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
    )
    files.finish(record)
    return ()


def write_failures(path: Path, failures: Collection[Failure]) -> None:
    """Write ``failures.csv`` without the names in its sentences; delete it where no subject failed."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "stage", "reason"])
        writer.writerows([failure.key, failure.stage, without_names(failure.reason)] for failure in failures)
