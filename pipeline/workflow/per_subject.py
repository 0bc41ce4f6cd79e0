"""Work per subject: each subject has its own record, so that finished subjects are skipped."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, UserError, counted, merged
from . import attempts
from .origin import Origin
from .records import Meter, StageRecord, versions
from .replacement import Replacement
from .runner import Run, StageResult
from .stage_inputs import cohort_of


def work_by_subject(
    run: Run,
    stage: str,
    task: Callable[..., StageRecord],
    inputs: Mapping[str, Mapping[str, Any]],
    record_path: Callable[[SubjectRecord], Path],
    *arguments: Any,
    all_may_fail: bool = False,
) -> StageResult:
    """Call ``task(subject, inputs, origin, *arguments)`` for the subjects whose record is not current.

    Parameters
    ----------
    run : Run
    stage : str
    task : callable
    inputs : mapping from subject key to all inputs of this subject's result
    record_path : callable
        Returns the path of a subject's record.
    all_may_fail : bool
        Whether it is no error if all subjects failed.

    Raises
    ------
    UserError
        All subjects failed, unless `all_may_fail`.
    """
    subjects = cohort_of(run)
    paths = {key: record_path(subjects[key]) for key in inputs}
    outdated = [key for key in inputs if _current(paths[key], inputs[key], run.out.root) is None]
    pending = [key for key in outdated if run.chosen is None or key in run.chosen]
    attempts.plan(run.out, stage, inputs)
    with run.console.progress(stage, "subject") as progress:

        def report(done: int, total: int, key: str) -> None:
            progress(done, total, key)
            run.console.say(f"    {stage} {key}: {done} of {total}", level=1)

        calls = [(subjects[key], inputs[key], run.origin, *arguments) for key in pending]
        outcome = run.engine.map(task, calls, stage=stage, progress=report, say=run.console.say)
    for failure in outcome.failures:
        attempts.fail(run.out, stage, failure.key, run.manifest.anonymous(failure.reason))
    failed = {failure.key for failure in outcome.failures}
    left = len(outdated) - len(pending)
    finished = [key for key in inputs if key not in failed and (key in pending or key not in outdated)]
    records = {key: StageRecord.read(paths[key]) for key in finished}
    done = {key: record for key, record in records.items() if record is not None}
    before = len(inputs) - len(outdated)
    if outcome.failures and not done and not all_may_fail:
        raise UserError(merged(((failure.key, failure.reason) for failure in outcome.failures), len(inputs)))
    return StageResult(
        outputs=[run.out.root / name for record in done.values() for name in record.outputs],
        done=tuple(done),
        failed=outcome.failures,
        left=left,
        warnings=tuple(f"{key}: {warning}" for key, record in done.items() for warning in record.warnings),
        summary=f"{len(done)} of {counted(len(inputs), 'subject')}" + f", {before} of them up to date" * (before > 0),
    )


def cached(
    stage: str,
    subject: SubjectRecord,
    path: Path,
    inputs: Mapping[str, Any],
    out: OutputFolder,
    parts: Sequence[str],
    work: Callable[[OutputFolder], Sequence[str]],
    *,
    origin: Origin,
    device: str = "cpu",
    about: Mapping[str, Any] | None = None,
    keep_failures: bool = False,
) -> StageRecord:
    """Do the work of one subject, unless its record is current.

    Parameters
    ----------
    stage : str
    subject : SubjectRecord
    path : Path
        Path of the subject's record.
    inputs : mapping
        All inputs of the result.
    out : OutputFolder
    parts : sequence of str
        Outputs of the work (see `Replacement`).
    work : callable
        ``work(out) -> warnings``: builds the files. Earlier files stay until it is finished.
    origin : Origin
    device : str
        The torch device of the work.
    about : mapping, optional
        For `StageRecord.about`.
    keep_failures : bool
        Whether files are kept for inspection although the work failed.
    """
    files = Replacement(out, f"{stage}-{subject.key}", parts, path)
    files.complete()
    existing = _current(path, inputs, out.root)
    if existing is not None:
        # The worker died after it finished this subject, and the call is repeated.
        attempts.end(out, stage, subject.key, existing.wall_s, existing.peak_memory_mb)
        return existing
    attempts.begin(out, stage, subject.key)
    files.begin(inputs, goes_on=lambda before, now: False)
    began, meter = datetime.now(UTC).isoformat(), Meter()

    def record(**more: Any) -> StageRecord:
        return StageRecord(
            stage=stage,
            inputs=dict(inputs),
            outputs={},
            started=began,
            wall_s=round(meter.wall_s, 2),
            peak_memory_mb=round(meter.peak_memory_mb, 1),
            versions=versions(),
            device=device,
            about=dict(about or {}),
            origin=origin.recorded(),
            **more,
        )

    try:
        with meter:
            warnings = work(files.built)
    except UserError:
        if keep_failures:
            # The reason is not recorded, since it may contain a file name.
            files.finish(record(failed=(Failure(subject.key, stage, "failed"),)))
        else:
            files.discard(files.folder)
        raise
    finished = files.finish(record(done=(subject.key,), warnings=tuple(warnings)))
    attempts.end(out, stage, subject.key, meter.wall_s, meter.peak_memory_mb)
    return finished


def _current(path: Path, inputs: Mapping[str, Any], root: Path) -> StageRecord | None:
    """Return the subject's record if it has the same inputs and its files are complete."""
    record = StageRecord.read(path)
    current = record and not record.failed and record.comparable_inputs == dict(inputs) and record.is_complete(root)
    return record if current else None
