"""Runs of all methods for all digits, seeds and protocols, in parallel; existing results are reused.

The engine runs the shared warm-ups, then one task for each (protocol, digit, seed, method). Failures do not affect
other tasks.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from voxout.data_manifests.errors import Failure, UserError
from voxout.pipeline.workflow.console import Progress
from voxout.pipeline.workflow.engine import Engine

from .conditions import Conditions, make_conditions
from .digits import Digits
from .methods import METHODS, Method
from .protocol import PROTOCOLS, Split, Unit, split
from .results import Result, Task, method_task, read_result, warm_up_task
from .work import make_result, make_warm_up


@dataclass(frozen=True)
class BenchmarkRun:
    """Result of a run.

    Attributes
    ----------
    results : tuple of Result
    failures : tuple of Failure
    conditions : Conditions
    latents : dict of (int, str) to Path
        Files of the latents during training, by digit and method.
    """

    results: tuple[Result, ...]
    failures: tuple[Failure, ...]
    conditions: Conditions
    latents: dict[tuple[int, str], Path]


def run_benchmark(
    digits: Digits,
    chosen: Sequence[int],
    seeds: int,
    methods: Sequence[Method],
    out: Path,
    engine: Engine,
    *,
    say: Callable[..., None],
    progress: Callable[[str, str], AbstractContextManager[Progress]],
) -> BenchmarkRun:
    """Compute the missing results.

    Parameters
    ----------
    digits : Digits
    chosen : sequence of int
        Digits used as the normal class.
    seeds : int
    methods : sequence of Method
    out : Path
    engine : Engine
    say : callable
        Prints a line of text.
    progress : callable
        ``progress(label, unit)`` is a context manager that returns a function ``progress(done, total, *what)``.

    Raises
    ------
    UserError
        No digit can be used; the message gives the reason for each.
    """
    splits, failures = _splits(digits, [Unit(p, d, s) for p in PROTOCOLS for s in range(seeds) for d in chosen])
    if not splits:
        raise UserError(sorted({failure.reason for failure in failures}))
    data = digits.fingerprint()
    tasks = [method_task(out, data, unit, method.name) for unit in splits for method in methods]
    wanted = [task for task in tasks if read_result(task) is None]
    say(f"results: {len(tasks) - len(wanted)} of {len(tasks)} exist, {len(wanted)} to compute")
    rows = np.concatenate([np.concatenate([s.train, s.validation, s.test]) for s in splits.values()])
    with progress("corruptions", "kind") as report:
        folder = make_conditions(digits, rows, out / "conditions", progress=report)

    warm = {task: _warm_up(out, data, task) for task in wanted}
    missing = {w.out: w for w in warm.values() if w is not None and not w.out.is_file()}.values()
    first: Any = [(w, splits[w.unit], folder) for w in missing]
    with progress("warm-ups", "network") as report:
        failures += engine.map(make_warm_up, first, stage="warm-up", progress=report, say=say).failures
    then: Any = [(task, warm[task], splits[task.unit], folder) for task in wanted]
    with progress("methods", "result") as report:
        failures += engine.map(make_result, then, stage="method", progress=report, say=say).failures
    results = [read_result(task) for task in tasks]
    return BenchmarkRun(
        results=tuple(result for result in results if result is not None),
        failures=tuple(failures),
        conditions=Conditions.open(folder),
        latents={(t.unit.digit, t.part): t.latents for t in tasks if t.latents.is_file()},
    )


def _splits(digits: Digits, units: Sequence[Unit]) -> tuple[dict[Unit, Split], list[Failure]]:
    splits, failures = {}, []
    for unit in units:
        try:
            splits[unit] = split(digits, unit)
        except UserError as error:
            failures.append(Failure(str(unit), "split", str(error)))
    return splits, failures


def _warm_up(out: Path, data: str, task: Task) -> Task | None:
    recipe = METHODS[task.part].recipe
    return warm_up_task(out, data, task.unit, variational=recipe.variational) if recipe else None
