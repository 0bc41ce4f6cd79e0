"""How much of the work of a run is left, without doing any of it."""

from collections.abc import Mapping, Sequence

from .records import StageRecord
from .runner import Run, Stage, why_outdated
from .status import RECORDS


def left_to_do(names: Sequence[str], stages: Mapping[str, Stage], run: Run) -> dict[str, int | None]:
    """Find the stages that a call would run.

    Returns
    -------
    dict of str to int or None
        By stage: the number of subjects that it would not have to work on; None if it has no subjects of its own. A
        stage that is up to date or not needed is left out.
    """
    left, spread = {}, False
    for name in names:
        stage = stages[name]
        if stage.skip_reason(run) is not None:
            continue
        outdated = None if spread else why_outdated(stage, run)
        if not spread and outdated is None:
            continue
        # Scans are prepared one by one, whatever changed before; maps and pages depend on the stages before them.
        is_kept = name in RECORDS and (not spread or name == "prepare")
        left[name] = _done(stage, run) if is_kept else (0 if name in RECORDS else None)
        spread = spread or (outdated is not None and outdated.spreads)
    return left


def _done(stage: Stage, run: Run) -> int:
    """Count the subjects with a record that today's settings do not change."""
    inputs = stage.inputs(run)
    records = (StageRecord.read(RECORDS[stage.name](run.out, subject)) for subject in run.manifest)
    return sum(
        record is not None
        and not record.failed
        and all(inputs.get(name, value) == value for name, value in record.comparable_inputs.items())
        for record in records
    )
