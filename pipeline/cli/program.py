"""What every command has in common as a program: exit codes, errors in sentences, signals, console."""

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from ...data_manifests.caches import choose_caches
from ...data_manifests.errors import UserError, for_terminal, private
from ...data_manifests.machine import machine_trouble, path_trouble
from ..workflow.interruption import Interrupted, interruptible

DONE, MISTAKE, SOME_FAILED, NOT_READ = 0, 2, 3, 130


def run_program(command: Callable[[argparse.Namespace], int], options: argparse.Namespace, *, signals: bool) -> int:
    """Run a command; return its exit code.

    Parameters
    ----------
    command : callable
        ``command(options) -> exit code``.
    options : argparse.Namespace
    signals : bool
        Whether signals interrupt it, as they should a program. A caller in Python keeps its own ways with them.
    """
    # Deprecation warnings of libraries are not meant for the user of a program.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be of the terminal's letters
    choose_caches()

    def tell_interruption(number: int) -> None:
        _tell_interruption(options, number)

    try:
        with interruptible(tell_interruption) if signals else nullcontext():
            return command(options)
    except UserError as error:
        for problem in error.problems:
            print(f"voxout: {for_terminal(problem)}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:
        _let_go_of_closed_streams()
        return NOT_READ
    except OSError as error:
        out = getattr(options, "scores", None) or getattr(options, "out", None)
        if (trouble := machine_trouble(error, out) or path_trouble(error)) is None:
            raise
        print(f"voxout: {for_terminal(trouble)}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        tell_interruption(number)
        return 128 + number


def open_console(options: argparse.Namespace, out: Path | None):
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..workflow.console import Console

    log = None
    if out is not None and not options.dry_run:
        make_folder(out)
        log = OutputFolder(out).log
    options.console = console = Console(log, verbosity=-1 if options.quiet else int(options.verbose))
    for note in choose_caches().notes:
        console.say(note, level=1)
    return console


def make_folder(folder: Path) -> None:
    if folder.parts and folder.parts[0].startswith("~"):
        raise UserError(
            f"{private(folder, 'the output folder')}: the shell left the ~ as it is, or knows no such user. Write the "
            "path out."
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: its name is not UTF-8. Choose another output folder."
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: cannot be made ({error.strerror}). Choose another output folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{private(folder, 'the output folder')}: is not writable. Choose another folder for the output."
        )


def _tell_interruption(options: argparse.Namespace, number: int) -> None:
    name = signal.Signals(number).name
    # The terminal may be gone, and the disk full; an interruption is no time for either.
    with suppress(OSError):
        if (console := getattr(options, "console", None)) is not None:
            console.log("interrupted", signal=name)
    with suppress(OSError):
        print(f"voxout: interrupted ({name}). The same command goes on from here.", file=sys.stderr)
    _let_go_of_closed_streams()


def _let_go_of_closed_streams() -> None:
    """Flush the output; where its reader has closed it (as `| head` does), discard the rest, also at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
