"""Attempts at the subjects of a stage, on disk, so that a run can be followed while it works and after it was killed.

A worker writes when it begins and ends a subject, the run when one has failed; each subject has a file of its own.
"""

import functools
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.typed_json import load_json
from .ownership import require_inside
from .records import write_json

_PLAN = "plan.json"
RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a subject.

    Attributes
    ----------
    state : str
        `RUNNING`, `DONE` or `FAILED`. An attempt that was killed with its run stays `RUNNING`.
    number : int
        Attempts since the subject was last done.
    began, ended : float
        Seconds since 1970; 0: not yet.
    wall_s, peak_memory_mb : float
        Of an attempt that is done.
    host : str
        Kind of the machine, without its name.
    reason : str
        Of a failure, without private names.
    """

    state: str
    number: int
    began: float
    ended: float = 0.0
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0
    host: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Subjects of a stage, as the last call of it began."""

    subjects: tuple[str, ...]
    began: float


def plan(out: OutputFolder, stage: str, subjects: Iterable[str]) -> None:
    """Write which subjects a stage has."""
    _write(out, stage, _PLAN, Plan(tuple(subjects), time.time()))


def read_plan(out: OutputFolder, stage: str) -> Plan | None:
    """Return the subjects of a stage; None if it has not begun."""
    try:
        values = load_json(out.attempts(stage) / _PLAN)
        return Plan(tuple(values["subjects"]), float(values["began"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def begin(out: OutputFolder, stage: str, key: str) -> None:
    """Write that work on a subject begins."""
    before = read(out, stage, key)
    number = before.number + 1 if before is not None and before.state != DONE else 1
    _write(out, stage, f"{key}.json", Attempt(RUNNING, number, time.time(), host=host_class()))


def end(out: OutputFolder, stage: str, key: str, wall_s: float, peak_memory_mb: float) -> None:
    """Write that a subject is done."""
    before = read(out, stage, key) or Attempt(RUNNING, 1, time.time() - wall_s, host=host_class())
    if before.state != DONE:
        measured = {"wall_s": round(wall_s, 2), "peak_memory_mb": round(peak_memory_mb, 1)}
        _write(out, stage, f"{key}.json", replace(before, state=DONE, ended=time.time(), **measured))


def fail(out: OutputFolder, stage: str, key: str, reason: str) -> None:
    """Write that a subject has failed."""
    before = read(out, stage, key) or Attempt(RUNNING, 1, time.time())
    _write(out, stage, f"{key}.json", replace(before, state=FAILED, ended=time.time(), reason=reason))


def read(out: OutputFolder, stage: str, key: str) -> Attempt | None:
    """Return the last attempt at a subject; None if there was none."""
    try:
        return Attempt(**load_json(out.attempts(stage) / f"{key}.json"))
    except (OSError, ValueError, TypeError):
        return None


def forget(out: OutputFolder, key: str) -> None:
    """Delete what is known of the attempts at a subject."""
    for folder in out.attempts("").glob("*"):
        (folder / f"{key}.json").unlink(missing_ok=True)
        listed = read_plan(out, folder.name)
        if listed is not None and key in listed.subjects:
            _write(out, folder.name, _PLAN, replace(listed, subjects=tuple(k for k in listed.subjects if k != key)))


@functools.cache
def host_class() -> str:
    """Return the kind of this machine: processor, cores, memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"


def time_text(seconds: float) -> str:
    """Return a time as text in UTC; empty for 0."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""


def _write(out: OutputFolder, stage: str, name: str, value: Any) -> None:
    path = out.attempts(stage) / name
    require_inside(out.root, str(path.relative_to(out.root)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(value))
