"""Output of a run: progress bars on a terminal, plain lines elsewhere, and a JSON-lines log in both cases."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from ...data_manifests.errors import for_terminal, kept
from ...data_manifests.open_file import open_to_append
from .standard_streams import write_line

_LINE_EVERY_S = 20
Progress = Callable[..., None]
"""Called as ``progress(done, total, *what)``."""


def duration(seconds: float) -> str:
    """Format an estimated duration, with two digits at most."""
    if seconds < 55:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    if minutes < 55:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {rest:02} min" if hours < 10 else f"{hours + rest / 60:.0f} h"


class _Forward(logging.Handler):
    """Logging handler that shows logged warnings of voxout's modules to the user."""

    def __init__(self, console: "Console"):
        super().__init__(level=logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(f"    warning: {record.getMessage()}")


class Console:
    """Messages of a run, printed for the user and logged as JSON lines.

    Parameters
    ----------
    log : Path or None
        JSON-lines file; appended to.
    verbosity : int
        -1: only results and errors; 0: one line per stage; 1: one line per subject.

    Raises
    ------
    UserError
        `log` is a link, a pipe or a folder.
    """

    def __init__(self, log: Path | None = None, verbosity: int = 0):
        self.verbosity = verbosity
        self._log = log
        if log is not None:
            open_to_append(log).close()  # refused before the work starts
        logger = logging.getLogger("voxout")
        logger.handlers = [_Forward(self)]
        logger.propagate = False

    def say(self, text: str, *, level: int = 0, kept: str | None = None, **facts: object) -> None:
        """Print a line unless its level exceeds the verbosity, and log it (or `kept` instead) with `facts`."""
        if level <= self.verbosity:
            write_line(for_terminal(text), sys.stdout)
        self.log(kept or text, **facts)

    def warn(self, text: str, *, kept: str | None = None, **facts: object) -> None:
        """Print a line on standard error, also in a quiet run, and log it (or `kept` instead) with `facts`."""
        write_line(for_terminal(text), sys.stderr)
        self.log(kept or text, warning=True, **facts)

    @contextmanager
    def progress(self, label: str, unit: str = "") -> Iterator[Progress]:
        """Show the progress of a block, with the time left; the total is given with each call."""
        if self.verbosity < 0:
            yield lambda done, total, *what: None
        elif sys.stderr is not None and sys.stderr.isatty():
            with tqdm(desc=label, unit=unit or "it", leave=False, file=sys.stderr, dynamic_ncols=True) as bar:

                def move_bar(done: int, total: int, *what: object) -> None:
                    bar.total = total
                    bar.set_postfix_str(" ".join(str(part) for part in what), refresh=False)
                    bar.update(done - bar.n)

                yield move_bar
        else:
            printed = began = time.monotonic()
            before: int | None = None

            def print_line(done: int, total: int, *what: object) -> None:
                nonlocal printed, began, before
                now = time.monotonic()
                if before is None:  # an interrupted training goes on at a later step
                    began, before = (began, 0) if done <= 1 else (now, done)
                if now - printed > _LINE_EVERY_S and done < total:
                    printed = now
                    left = (now - began) * (total - done) / (done - before) if done > before else None
                    about = f", about {duration(left)} left" if left is not None else ""
                    units = f" {unit}s" if unit else ""
                    write_line(f"  {label}: {done} of {total}{units}{about}", sys.stdout)

            yield print_line

    def log(self, text: str, **facts: object) -> None:
        """Write a line to the log only."""
        if self._log is not None:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "message": text, **facts}
            with open_to_append(self._log) as file:
                file.write(json.dumps(kept(line), default=str) + "\n")
