"""Behaviour that all commands share: exit codes, error messages, signals, console."""

import argparse
import io
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...data_manifests.caches import choose_caches
from ...data_manifests.errors import Failure, UserError, for_terminal, private
from ...data_manifests.machine import machine_trouble, path_trouble
from ..exit_codes import DONE, SOME_FAILED, STDOUT_CLOSED, USER_ERROR
from ..workflow.interruption import Interrupted, interruptible
from ..workflow.standard_streams import write_line

if TYPE_CHECKING:
    from ...data_manifests.cohort.subject import Manifest
    from ..run import RunOptions
    from ..workflow.runner import Run

_MOST_FINDINGS = 10
"""Patients whose findings are printed at the end of a command."""


def run_program(command: Callable[[argparse.Namespace], int], options: argparse.Namespace, *, signals: bool) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    command : callable
        ``command(options) -> exit code``.
    options : argparse.Namespace
    signals : bool
        Whether signals interrupt the command. If False, the signal handlers of the caller stay in place.
    """
    # Hide deprecation warnings of libraries, which users of the program cannot act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not be encodable in the terminal
    choose_caches()

    def report_interruption(number: int) -> None:
        _report_interruption(options, number)

    try:
        with interruptible(report_interruption) if signals else nullcontext():
            return command(options)
    except UserError as error:
        for problem in error.problems:
            write_line(f"voxout: {for_terminal(problem)}", sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        return STDOUT_CLOSED
    except OSError as error:
        out = getattr(options, "scores", None) or getattr(options, "out", None)
        if (trouble := machine_trouble(error, out) or path_trouble(error)) is None:
            raise
        write_line(f"voxout: {for_terminal(trouble)}", sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        report_interruption(number)
        return 128 + number


def open_console(options: argparse.Namespace, out: Path | None):
    """Open the console of a command, with the log of an output folder unless it is a dry run."""
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..workflow.console import Console
    from ..workflow.ownership import claim

    log = None
    if out is not None and not options.dry_run:
        claim(out)
        log = OutputFolder(out).log
    options.console = console = Console(log, verbosity=-1 if options.quiet else int(options.verbose))
    for note in choose_caches().notes:
        console.say(note, level=1)
    return console


def run_options(
    options: argparse.Namespace,
    manifest: "Manifest",
    model: Path | None,
    stages: Sequence[str] = (),
    *,
    of_one_scan: bool = False,
) -> "RunOptions":
    """Return what a command on a cohort asks for."""
    from ..run import RunOptions

    return RunOptions(
        manifest=manifest,
        out=options.out,
        stages=stages,
        cohort=None if of_one_scan else options.cohort,
        model=model,
        config=options.config,
        preset=options.preset,
        settings=options.set,
        seed=options.seed,
        seeds=options.seeds,
        device=options.device,
        jobs=options.jobs,
        cluster=options.cluster,
        scheduler=options.scheduler,
        subjects=getattr(options, "subjects", None),
        reference_runs=tuple(getattr(options, "runs", ())),
        dry_run=options.dry_run,
        command=options.asked,
    )


def closing(run: "Run", names: Sequence[str], failures: Sequence[Failure], dry_run: bool) -> int:
    """Say what a command on a cohort has found, and how many subjects failed; return the exit code."""
    if not dry_run and "report" in names:
        from ..stages.findings import finding_lines
        from ..stages.score import load_scores, score_lines

        scores = load_scores(run)
        # Without a lesion mask or a healthy scan, all scores are undefined.
        for line in score_lines(scores) if any(scored.truth_known for scored in scores.subjects) else ():
            run.console.say(line, level=-1)
        run.console.say(f"report: {private(run.out.report, 'the report')}", level=-1)
        found, number = finding_lines(run, scores, _MOST_FINDINGS)
        for line in found:
            # Not in the log, which `voxout remove` leaves.
            write_line(line, sys.stdout)
        if number > len(found):
            more = f"and {number - len(found)} more: see {private(run.out.report, 'the report')}"
            run.console.say(more, level=-1)
    return exit_code(run, failures)


def exit_code(run: "Run", failures: Sequence[Failure]) -> int:
    """Say how many subjects failed; return the exit code."""
    if not failures:
        return DONE
    shown = private(run.out.failures, "failures.csv")
    run.console.warn(f"{len(failures)} subject(s) failed; see {shown} for the reasons.")
    return SOME_FAILED


def _report_interruption(options: argparse.Namespace, number: int) -> None:
    name = signal.Signals(number).name
    with suppress(OSError, UserError):  # a full disk, or a log that became a link
        if (console := getattr(options, "console", None)) is not None:
            console.log("interrupted", signal=name)
    write_line(f"voxout: interrupted ({name}). Run the same command again to continue.", sys.stderr)
