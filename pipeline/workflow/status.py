"""State of a run by subject and stage, from the files in its output folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord, parts_of_key
from ...data_manifests.csv_file import csv_table
from ...data_manifests.errors import without_names
from .attempts import DONE, FAILED, RUNNING, Attempt, read, read_plan, time_text
from .records import StageRecord

WAITING, INTERRUPTED = "waiting", "interrupted"
RECORDS: dict[str, Callable[[OutputFolder, SubjectRecord], Path]] = {
    "prepare": OutputFolder.subject_record,
    "map": OutputFolder.map_record,
    "report": OutputFolder.page_record,
}
"""Record of one subject in the stages that have one."""


@dataclass(frozen=True)
class StageStatus:
    """State of the subjects of a stage.

    Attributes
    ----------
    stage : str
    attempts : dict from subject key to Attempt
        With the states `WAITING` and `INTERRUPTED` besides those of an `Attempt`.
    began : float
        Time at which the last call of the stage began, in seconds since 1970; 0: not known.
    """

    stage: str
    attempts: dict[str, Attempt]
    began: float = 0.0

    def count(self, state: str) -> int:
        """Return the number of subjects in a state."""
        return sum(attempt.state == state for attempt in self.attempts.values())

    @property
    def left(self) -> int:
        """Number of subjects that are neither done nor failed."""
        return len(self.attempts) - self.count(DONE) - self.count(FAILED)

    def per_hour(self, now: float) -> float:
        """Return how many subjects an hour the last call of the stage has finished; 0: not known."""
        ended = [a.ended for a in self.attempts.values() if a.state in (DONE, FAILED) and a.ended > self.began]
        until = now if self.count(RUNNING) else max(ended, default=0.0)
        return 3600 * len(ended) / (until - self.began) if ended and 0 < self.began < until else 0.0

    def left_s(self, now: float) -> float | None:
        """Return the time that the subjects that are left will take; None: not known."""
        rate = self.per_hour(now)
        return 3600 * self.left / rate if rate and self.left else None


def status_of(out: OutputFolder, *, is_working: bool = True) -> list[StageStatus]:
    """Return the state of the stages with subjects of their own, as far as they have begun.

    Parameters
    ----------
    out : OutputFolder
    is_working : bool
        Whether a run is working in the folder; otherwise, what is `RUNNING` was interrupted.
    """
    found = [_of_check(out), *(_of_stage(out, stage) for stage in RECORDS)]
    stages = [status for status in found if status is not None]
    return stages if is_working else [_interrupted(status) for status in stages]


def _of_check(out: OutputFolder) -> StageStatus | None:
    record = StageRecord.read(out.record("check"))
    if record is None:
        return None
    done = {key: Attempt(DONE, 1, 0.0) for key in record.done}
    failed = {f.key: Attempt(FAILED, 1, 0.0, reason=f.reason) for f in record.failed}
    return StageStatus("check", dict(sorted((done | failed).items())))


def _of_stage(out: OutputFolder, stage: str) -> StageStatus | None:
    plan = read_plan(out, stage)
    if plan is None:
        return None
    return StageStatus(stage, {key: _attempt(out, stage, key) for key in plan.subjects}, plan.began)


def _attempt(out: OutputFolder, stage: str, key: str) -> Attempt:
    """Return the last attempt, or what the record of an earlier version says."""
    if (attempt := read(out, stage, key)) is not None:
        return attempt
    subject, session = parts_of_key(key)
    record = StageRecord.read(RECORDS[stage](out, SubjectRecord(subject, "patient", {}, session_id=session)))
    if record is None or record.failed:
        return Attempt(WAITING, 0, 0.0)
    return Attempt(DONE, 1, 0.0, wall_s=record.wall_s, peak_memory_mb=record.peak_memory_mb)


def _interrupted(status: StageStatus) -> StageStatus:
    attempts = {
        key: replace(attempt, state=INTERRUPTED) if attempt.state == RUNNING else attempt
        for key, attempt in status.attempts.items()
    }
    return replace(status, attempts=attempts)


def status_table(stages: Sequence[StageStatus]) -> bytes:
    """Return the content of ``status.csv``: one row per subject and stage."""
    header = ["subject", "stage", "state", "attempt", "began", "seconds", "memory_mb", "host", "reason"]
    rows = [
        [
            key,
            status.stage,
            attempt.state,
            attempt.number or None,
            time_text(attempt.began),
            attempt.wall_s or None,
            attempt.peak_memory_mb or None,
            attempt.host,
            without_names(attempt.reason),
        ]
        for status in stages
        for key, attempt in status.attempts.items()
    ]
    return csv_table(header, rows)


def status_lines(stages: Sequence[StageStatus], duration: Callable[[float], str]) -> list[str]:
    """Return one line per stage: counts, rate and time left."""
    now, lines = time.time(), []
    for status in stages:
        counts = [(status.count(state), state) for state in (DONE, FAILED, RUNNING, INTERRUPTED, WAITING)]
        text = ", ".join(f"{number} {state}" for number, state in counts if number)
        rate, left = status.per_hour(now), status.left_s(now)
        pace = (f"; {rate:.0f} an hour" if rate else "") + (f", about {duration(left)} left of it" if left else "")
        lines.append(f"{status.stage}: {text} of {len(status.attempts)}{pace}")
    return lines
