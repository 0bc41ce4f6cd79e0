"""Work that goes subject by subject: each subject keeps a record of its own, so it is done once."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.errors import UserError
from ..data_manifests.subject import SubjectRecord
from .records import Meter, StageRecord, sizes, versions
from .run import Run, Work


def work_by_subject(
    run: Run,
    stage: str,
    task: Callable[..., StageRecord],
    inputs: Mapping[str, Mapping[str, Any]],
    record_path: Callable[[SubjectRecord], Path],
    *arguments: Any,
    all_may_fail: bool = False,
) -> Work:
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
    paths = {key: record_path(run.manifest[key]) for key in inputs}
    undone = [key for key in inputs if _current(paths[key], inputs[key], run.out.root) is None]
    pending = [key for key in undone if run.chosen is None or key in run.chosen]
    with run.console.progress(stage, "subject") as progress:

        def tell(done: int, total: int, key: str) -> None:
            progress(done, total, key)
            run.console.say(f"    {stage} {key}: {done} of {total}", level=1)

        calls = [(run.manifest[key], inputs[key], *arguments) for key in pending]
        outcome = run.engine.map(task, calls, stage=stage, progress=tell)
    failed = {failure.key for failure in outcome.failures}
    left = len(undone) - len(pending)
    came_through = [key for key in inputs if key not in failed and (key in pending or key not in undone)]
    records = {key: StageRecord.read(paths[key]) for key in came_through}
    done = {key: record for key, record in records.items() if record is not None}
    before = len(inputs) - len(undone)
    if outcome.failures and not done and not all_may_fail:
        raise UserError([failure.reason for failure in outcome.failures])
    return Work(
        outputs=[run.out.root / name for record in done.values() for name in record.outputs],
        done=tuple(done),
        failed=outcome.failures,
        left=left,
        warnings=tuple(f"{key}: {warning}" for key, record in done.items() for warning in record.warnings),
        summary=f"{len(done)} of {len(inputs)} subjects" + (f", {before} of them done before" if before else ""),
    )


def recorded(
    stage: str,
    subject: SubjectRecord,
    path: Path,
    inputs: Mapping[str, Any],
    out: OutputFolder,
    work: Callable[[], tuple[Sequence[Path], Sequence[str]]],
) -> StageRecord:
    """Do the work of one subject, which gives its files and warnings, unless its record says that it is done."""
    existing = _current(path, inputs, out.root)
    if existing is not None:
        # A worker that died after this subject was finished: asked again, it finds the record.
        return existing
    path.unlink(missing_ok=True)
    began = datetime.now(UTC).isoformat()
    with Meter() as meter:
        outputs, warnings = work()
    record = StageRecord(
        stage=stage,
        inputs=dict(inputs),
        outputs=sizes(out.root, outputs),
        done=(subject.key,),
        warnings=tuple(warnings),
        started=began,
        wall_s=round(meter.wall_s, 2),
        peak_memory_mb=round(meter.peak_memory_mb, 1),
        versions=versions(),
    )
    record.write(path)
    return record


def _current(path: Path, inputs: Mapping[str, Any], root: Path) -> StageRecord | None:
    """The subject's record, if it was made from these inputs and its files are whole."""
    record = StageRecord.read(path)
    return record if record and dict(record.inputs) == dict(inputs) and record.whole(root) else None
