"""One of the processes that train an encoder together.

``python -m voxout.pipeline.stages.training_process FOLDER RANK COUNT DEVICE PARENT``: private folder of the training
with the task, number of this process and of all, its device, and id of the parent process. Its output is a line of JSON
for each message: ``{"progress": [done, total]}``, ``{"warning": text}`` or ``{"problems": [text, ...]}``.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from ...data_manifests.caches import choose_caches
from ...data_manifests.errors import UserError
from ...data_manifests.machine import machine_trouble
from ..cluster.worker_process import follow_parent
from .encoder_task import EncoderTask

TASK, MEETING = "task.json", "meeting"
"""Files in the folder: the task, and where the processes find each other."""
STOPPED = 2
"""Exit code after a message with problems."""


def main(folder: str, rank: str, count: str, device: str, parent: str) -> int:
    """Train, and return the exit code."""
    if not follow_parent(int(parent)):
        return 0
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message

    def tell(kind: str, content: object) -> None:
        print(json.dumps({kind: content}), file=output, flush=True)

    logger = logging.getLogger("voxout")
    logger.addHandler(_Warnings(tell) if rank == "0" else logging.NullHandler())
    logger.propagate = False
    warnings.filterwarnings("ignore", category=FutureWarning)
    choose_caches()
    task = EncoderTask.from_json((Path(folder) / TASK).read_bytes())
    try:
        _train(task, Path(folder), int(rank), int(count), device, lambda done, total: tell("progress", [done, total]))
    except UserError as error:
        tell("problems", error.problems)
        return STOPPED
    except OSError as error:
        if (trouble := machine_trouble(error, task.out)) is None:
            raise
        tell("problems", [trouble])
        return STOPPED
    return 0


def _train(
    task: EncoderTask, folder: Path, rank: int, count: int, device: str, progress: Callable[[int, int], None]
) -> None:
    import torch
    from torch import distributed

    from ...models.encoder.processes import Processes

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    # They meet in a file: a port, as of torchrun, would be open to all users of the machine.
    distributed.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo",
        init_method=(folder / MEETING).as_uri(),
        rank=rank,
        world_size=count,
    )
    try:
        task.run(device, progress, Processes.joined(device))
    finally:
        distributed.destroy_process_group()


class _Warnings(logging.Handler):
    """Handler that passes the warnings of voxout's modules on."""

    def __init__(self, tell: Callable[[str, str], None]):
        super().__init__(level=logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("warning", record.getMessage())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
