"""Training of one encoder by several processes, one for each device."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...data_manifests.errors import MachineError, UserError
from .encoder_task import EncoderTask
from .training_process import MEETING, TASK

_LOOK_S = 0.2
_OTHERS_S = 3.0
"""Time for the others to tell why, once a process has failed: the first one to end may not be the cause."""


def train_together(
    task: EncoderTask,
    devices: Sequence[str],
    progress: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> None:
    """Train an encoder, or resume; the checkpoint is that of one process, up to rounding.

    Parameters
    ----------
    task : EncoderTask
    devices : sequence of str
        A torch device for each process.
    progress, warn : callable
        Called with (steps done, total number of steps), and with the text of a warning.

    Raises
    ------
    UserError
        What the training of one process raises.
    MachineError
        A process was killed.
    RuntimeError
        A process failed for another reason.
    """
    with TemporaryDirectory(prefix="voxout-train-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / TASK).write_bytes(task.to_json())
        (folder / MEETING).touch()
        problems: list[str] = []
        reader, writer = os.pipe()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            with open(reader, "rb", buffering=0) as messages:
                try:
                    for rank, device in enumerate(devices):
                        processes.append(_start(folder, rank, len(devices), device, writer))
                finally:
                    os.close(writer)
                for message in _messages(messages, processes):
                    if "progress" in message:
                        progress(*message["progress"])
                    elif "warning" in message:
                        warn(message["warning"])
                    else:
                        problems = problems or message["problems"]
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
        if problems:
            raise UserError(problems)
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                cause = signal.Signals(-code).name
                raise MachineError(
                    f"Training: process {rank + 1} of {len(devices)} was killed ({cause}"
                    f"{', probably out of memory' if cause == 'SIGKILL' else ''}). Run the same command again to "
                    "continue from the last checkpoint, or use fewer devices."
                )
        if any(codes):
            raise RuntimeError("\n".join((folder / f"{rank}.txt").read_text() for rank in range(len(devices))))


def _start(folder: Path, rank: int, count: int, device: str, output: int) -> subprocess.Popen[bytes]:
    import torch

    environment = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        # Messages of these libraries are not encrypted.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    # -P: do not import from the current folder.
    command = [sys.executable, "-P", "-m", f"{__package__}.training_process"]
    command += [str(folder), str(rank), str(count), device, str(os.getpid())]
    with (folder / f"{rank}.txt").open("wb") as errors:
        return subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )


def _messages(pipe: Any, processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[dict[str, Any]]:
    """Yield the messages of the processes until all have ended, or some time after one has failed."""
    unfinished, give_up = b"", float("inf")
    while time.monotonic() < give_up:
        if give_up == float("inf") and any(process.poll() for process in processes):
            give_up = time.monotonic() + _OTHERS_S
        if not select.select([pipe], [], [], _LOOK_S)[0]:
            continue
        if not (read := pipe.read(2**16)):
            break  # all have ended
        *lines, unfinished = (unfinished + read).split(b"\n")
        yield from map(json.loads, lines)
    for process in processes:
        if give_up == float("inf"):
            process.wait()
