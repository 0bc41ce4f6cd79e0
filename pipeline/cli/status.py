"""`voxout status`: how far a run is."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ..workflow.attempts import FAILED
from ..workflow.console import duration
from ..workflow.lock import is_locked
from ..workflow.standard_streams import write_line
from ..workflow.status import status_lines, status_of, status_table


def print_status(folder: Path, *, as_table: bool) -> None:
    """Print the state of the run in an output folder; nothing is written there.

    Parameters
    ----------
    folder : Path
    as_table : bool
        Print a CSV table with a row per subject and stage.

    Raises
    ------
    UserError
        The folder is not that of a run, or no stage has ended there.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(OutputFolder(folder).record("run").parent)  # of another user: refused, as it may hold a run
    works = is_locked(folder)
    stages = status_of(OutputFolder(folder), is_working=works)
    if not stages:
        raise UserError(
            f"{private(folder, 'the output folder')}: no stage of a run has ended there, expected the output folder of "
            "a run. Check the path, or wait for the stage check."
        )
    if as_table:
        write_line(status_table(stages).decode().rstrip().replace("\r", ""), sys.stdout)
        return
    write_line("a run is working in the folder" if works else "no run is working in the folder", sys.stdout)
    for line in status_lines(stages, duration):
        write_line(line, sys.stdout)
    for stage in stages:
        for key, attempt in stage.attempts.items():
            if attempt.state == FAILED:
                write_line(f"FAILED in {stage.stage}, attempt {attempt.number}: {attempt.reason or key}", sys.stdout)
