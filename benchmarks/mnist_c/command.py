"""Command `python -m benchmarks.mnist_c`: read the digits, compute missing results, write the report."""

from collections.abc import Sequence
from pathlib import Path

from voxout.data_manifests.errors import Failure, UserError
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.scratch import at_work_in

from .digits import CLASSES, read_digits
from .methods import chosen_methods
from .page import write_benchmark, write_failures
from .runs import run_benchmark
from .summary import Summary


def benchmark(
    out: Path,
    console: Console,
    *,
    data: Path | None,
    digits: Sequence[str] | None,
    seeds: int,
    methods: Sequence[str] | None,
    jobs: int | None,
) -> tuple[Failure, ...]:
    """Run the benchmark and write its results to folder `out`.

    Parameters
    ----------
    out : Path
    console : Console
    data : Path or None
        As for `read_digits`.
    digits, methods : sequence of str, or None
        None: all.
    seeds : int
    jobs : int, optional

    Returns
    -------
    tuple of Failure
        Failed parts of the benchmark; the others are complete.
    """
    chosen, run_methods = _chosen_digits(digits), chosen_methods(methods)
    read = read_digits(data)
    console.say(f"data: {read.source}")
    failures = tuple(
        Failure(name, "data", f"{name}: missing from the data, expected a folder of this name. Unpack MNIST-C again.")
        for name in read.missing
    )
    for failure in failures:
        console.warn(f"warning: {failure.reason} The other corruptions are used.")
    with at_work_in(out), Engine(jobs) as engine:
        run = run_benchmark(read, chosen, seeds, run_methods, out, engine, say=console.say, progress=console.progress)
        for failure in run.failures:
            console.warn(f"FAILED {failure.reason}", stage=failure.stage)
        failures += run.failures
        write_failures(out / "failures.csv", failures)
        if not run.results:
            raise UserError(f"{out}: found no results, expected at least one. See the reasons in failures.csv there.")
        summary = write_benchmark(out, read, run, failures)
    for line in summary_lines(summary):
        console.say(line, level=-1)
    console.say(f"report: {out / 'index.html'}", level=-1)
    return failures


def summary_lines(summary: Summary) -> list[str]:
    """Mean AUROC of each read-out, as lines for the terminal."""
    from voxout.evaluation.report.html import estimate_text

    lines, width = [], max(len(line.title) for line in summary.lines)
    for protocol in summary.protocols:
        lines.append(f"AUROC, {protocol} (mean over {len(summary.conditions(protocol))} conditions):")
        lines += [f"  {line.title:{width}} {estimate_text(summary.estimate(protocol, line))}" for line in summary.lines]
    return lines


def _chosen_digits(names: Sequence[str] | None) -> tuple[int, ...]:
    wrong = sorted({name for name in names or () if name not in map(str, CLASSES)})
    if wrong:
        raise UserError(f"--digits: found {', '.join(wrong)}, expected digits from 0 to 9. Use for instance 0,1,8.")
    return CLASSES if names is None else tuple(sorted({int(name) for name in names}))
