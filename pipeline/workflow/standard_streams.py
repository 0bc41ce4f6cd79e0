"""Standard output and standard error, which may be closed, broken or on a full disk."""

import os
import sys
from typing import TextIO

from ...data_manifests.errors import UserError


def open_closed_streams() -> None:
    """Discard what is written to a standard stream that the caller closed (``>&-``).

    Its number has to be taken: a file that got it would receive what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def write_line(line: str, stream: TextIO | None) -> None:
    """Write a line to standard output or standard error, above a progress bar.

    A line is dropped if its stream is closed, or if it is standard error and cannot be written: the log has it, and
    there is no other place to say so.

    Raises
    ------
    UserError
        Standard output cannot be written, as on a full disk.
    BrokenPipeError
        Its reader has ended (``| head``).
    """
    from tqdm import tqdm  # here, since `voxout --help` needs none

    if stream is None:
        return
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except OSError as error:
        discard(stream)
        if stream is sys.stderr:
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(
            f"standard output: cannot be written ({error.strerror}), expected a terminal, or a file on a disk with "
            "space. Redirect it elsewhere, then run the same command again: it resumes from here."
        ) from error


def discard(stream: TextIO) -> None:
    """Discard what a stream has not written yet, and all that follows: Python would fail at exit otherwise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
