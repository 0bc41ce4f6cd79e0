"""Work that goes subject by subject: each subject keeps a record of its own, so it is done once."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, UserError
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
    """Call ``task(subject, its inputs, *arguments)`` for the subjects whose record is not current.

    Parameters
    ----------
    run : Run
    stage : str
    task : callable
    inputs : mapping from subject key to all that decides this subject's result
    record_path : callable
        Where a subject's record lies.
    all_may_fail : bool
        Whether something is left to do when no subject came through.

    Raises
    ------
    UserError
        When no subject at all came through, unless all may fail.
    """
    subjects = cohort_of(run)
    paths = {key: record_path(subjects[key]) for key in inputs}
    undone = [key for key in inputs if _current(paths[key], inputs[key], run.out.root) is None]
    pending = [key for key in undone if run.chosen is None or key in run.chosen]
    with run.console.progress(stage, "subject") as progress:

        def tell(done: int, total: int, key: str) -> None:
            progress(done, total, key)
            run.console.say(f"    {stage} {key}: {done} of {total}", level=1)

        calls = [(subjects[key], inputs[key], *arguments) for key in pending]
        outcome = run.engine.map(task, calls, stage=stage, progress=tell, say=run.console.say)
    failed = {failure.key for failure in outcome.failures}
    left = len(undone) - len(pending)
    came_through = [key for key in inputs if key not in failed and (key in pending or key not in undone)]
    records = {key: StageRecord.read(paths[key]) for key in came_through}
    done = {key: record for key, record in records.items() if record is not None}
    before = len(inputs) - len(undone)
    if outcome.failures and not done and not all_may_fail:
        raise UserError([failure.reason for failure in outcome.failures])
    return StageResult(
        outputs=[run.out.root / name for record in done.values() for name in record.outputs],
        done=tuple(done),
        failed=outcome.failures,
        left=left,
        warnings=tuple(f"{key}: {warning}" for key, record in done.items() for warning in record.warnings),
        summary=f"{len(done)} of {len(inputs)} subjects" + (f", {before} of them done before" if before else ""),
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
    about: Mapping[str, Any] | None = None,
    keep_failures: bool = False,
) -> StageRecord:
    """Do the work of one subject, unless its record says that it is done.

    Parameters
    ----------
    stage : str
    subject : SubjectRecord
    path : Path
        Of the subject's record.
    inputs : mapping
        All that decides the result.
    out : OutputFolder
    parts : sequence of str
        What the work builds (see `Replacement`).
    work : callable
        ``work(out) -> warnings``: builds the files. Those of before stay until it is done.
    about : mapping, optional
        For `StageRecord.about`.
    keep_failures : bool
        Whether what was built takes its place although the work failed, to be looked at.
    """
    files = Replacement(out, f"{stage}-{subject.key}", parts, path)
    files.complete()
    existing = _current(path, inputs, out.root)
    if existing is not None:
        # A worker that died after this subject was finished: asked again, it finds the record.
        return existing
    files.begin(inputs, goes_on=lambda before, now: False)
    began = datetime.now(UTC).isoformat()

    def record(meter: Meter, **more: Any) -> StageRecord:
        return StageRecord(
            stage=stage,
            inputs=dict(inputs),
            outputs={},
            started=began,
            wall_s=round(meter.wall_s, 2),
            peak_memory_mb=round(meter.peak_memory_mb, 1),
            versions=versions(),
            about=dict(about or {}),
            **more,
        )

    try:
        with Meter() as meter:
            warnings = work(files.built)
    except UserError:
        if keep_failures:
            # Its reason stays out of the record: it may name a file.
            files.finish(record(meter, failed=(Failure(subject.key, stage, "failed"),)))
        else:
            files.discard(files.folder)
        raise
    return files.finish(record(meter, done=(subject.key,), warnings=tuple(warnings)))


def _current(path: Path, inputs: Mapping[str, Any], root: Path) -> StageRecord | None:
    """The subject's record, if it was made from these inputs and its files are whole."""
    record = StageRecord.read(path)
    current = record and not record.failed and dict(record.inputs) == dict(inputs) and record.whole(root)
    return record if current else None
