"""`voxout benchmark mnist-c`: read the digits, run what is missing, write the page."""

from collections.abc import Sequence
from pathlib import Path

from voxout.data_manifests.errors import Failure, UserError
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.scratch import at_work_in

from benchmarks.mnist_c.digits import CLASSES, read_digits
from benchmarks.mnist_c.methods import chosen_methods
from benchmarks.mnist_c.page import write_benchmark, write_failures
from benchmarks.mnist_c.runs import run_benchmark
from benchmarks.mnist_c.summary import Summary


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
    """Run the benchmark in folder `out`.

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
        What did not work out; the rest did.
    """
    chosen, run_methods = _chosen_digits(digits), chosen_methods(methods)
    read = read_digits(data)
    console.say(f"data: {read.source}")
    failures = tuple(
        Failure(
            name, "data", f"{name}: is missing from the data, expected a folder of this name. Unpack MNIST-C again."
        )
        for name in read.missing
    )
    for failure in failures:
        console.warn(f"warning: {failure.reason} The other corruptions run.")
    with at_work_in(out), Engine(jobs) as engine:
        run = run_benchmark(read, chosen, seeds, run_methods, out, engine, say=console.say, progress=console.progress)
        for failure in run.failures:
            console.warn(f"FAILED {failure.reason}", stage=failure.stage)
        failures += run.failures
        write_failures(out / "failures.csv", failures)
        if not run.results:
            raise UserError(f"{out}: no method came to a result. failures.csv there names each reason.")
        summary = write_benchmark(out, read, run, failures)
    for line in in_words(summary):
        console.say(line, level=-1)
    console.say(f"page: {out / 'index.html'}", level=-1)
    return failures


def in_words(summary: Summary) -> list[str]:
    """The table's first column, in lines for a terminal."""
    from voxout.evaluation.report.html import estimate_text

    lines, width = [], max(len(line.title) for line in summary.lines)
    for protocol in summary.protocols:
        lines.append(f"AUROC, {protocol} (mean over {len(summary.conditions(protocol))} conditions):")
        lines += [f"  {line.title:{width}} {estimate_text(summary.estimate(protocol, line))}" for line in summary.lines]
    return lines


def _chosen_digits(names: Sequence[str] | None) -> tuple[int, ...]:
    wrong = sorted({name for name in names or () if name not in map(str, CLASSES)})
    if wrong:
        raise UserError(f"--digits: {', '.join(wrong)} not known, expected digits from 0 to 9, as in 0,1,8.")
    return CLASSES if names is None else tuple(sorted({int(name) for name in names}))
