"""Single-threaded worker processes on this machine; one that has ended or stopped is replaced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

from ...data_manifests.errors import MachineError, private
from .worker_process import LEFT, READY

# One thread per worker: ANTs is bit-reproducible only then, and parallel subjects use the cores better.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
STILL_LIMIT_S = 60.0
"""A worker without processor time for this long has stopped: even an idle one wakes up many times a second."""


@dataclass
class _Worker:
    name: str
    slot: int
    process: subprocess.Popen[bytes]
    output: Path
    """File with the output of its start."""
    active: float
    """Last time at which it was found to use the processor."""
    processor_s: float = 0.0
    ready: bool = False


class WorkerPool:
    """Worker processes that connect to a scheduler.

    Parameters
    ----------
    size : int
        Number of workers.
    scheduler : str
        Address of the scheduler.
    keys : int
        File descriptor of the keys of the run.
    folder : Path
        Folder of temporary files.
    prefix : str
        Start of the names of the workers.
    idle_s : float
        Time after which a worker without calls leaves; infinite: never.
    gpus : sequence of str
        Numbers of the GPUs that the workers share, one for each in turn; empty: the workers see those of this process.
    on_end : callable
        ``on_end(worker, cause)`` is called when a worker has died; the cause is the name of a signal, or empty.

    Attributes
    ----------
    workers : list
        Running ones.
    """

    def __init__(
        self,
        size: int,
        scheduler: str,
        keys: int,
        folder: Path,
        *,
        prefix: str = "worker",
        idle_s: float = float("inf"),
        gpus: Sequence[str] = (),
        on_end: Callable[[str, str], None] = lambda worker, cause: None,
    ):
        self.size = size
        self.workers: list[_Worker] = []
        self.failed_start = ""
        """Reason of the last start that failed."""
        self._scheduler, self._keys, self._folder = scheduler, keys, folder
        self._prefix, self._idle_s, self._gpus, self._on_end = prefix, idle_s, tuple(gpus), on_end
        self._numbers = count()
        self._failed_starts = 0
        self._left: set[int] = set()
        self._next_start = self._tended = time.monotonic()

    @property
    def ready(self) -> int:
        """Number of workers that are ready for calls."""
        return sum(worker.ready for worker in self.workers)

    @property
    def finished(self) -> bool:
        """Whether all workers have left."""
        return len(self._left) == self.size

    def tend(self) -> int:
        """Replace the workers that have ended or stopped; return how many of them were ready for calls.

        Raises
        ------
        MachineError
            No worker can be started.
        """
        now = time.monotonic()
        asleep = now - self._tended > STILL_LIMIT_S / 2  # this process was suspended, and the workers with it
        self._tended = now
        lost = 0
        for worker in list(self.workers):
            if not worker.ready and _is_ready(worker):
                worker.ready, self._failed_starts = True, 0
            processor_s = _processor_s(worker.process.pid)
            if asleep or processor_s != worker.processor_s:
                worker.processor_s, worker.active = processor_s, now
            if now - worker.active > STILL_LIMIT_S:
                worker.process.kill()
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(2)
            elif worker.process.poll() is None:
                continue
            self.workers.remove(worker)
            if worker.process.returncode == LEFT:
                self._left.add(worker.slot)
            elif worker.ready:
                lost += 1
                self._on_end(worker.name, _signal_name(worker.process.returncode))
            else:
                self._start_failed(_last_line(worker))
        if self._failed_starts >= 2 * self.size and not self.ready:
            raise self.cannot_start()
        self._start_missing()
        return lost

    def drain(self) -> None:
        """Let workers finish the call that they are at, then leave; none is started any more."""
        running = {worker.slot for worker in self.workers}
        self._left |= set(range(self.size)) - running
        for worker in self.workers:
            worker.process.send_signal(signal.SIGUSR1)

    def _start_missing(self) -> None:
        taken = {worker.slot for worker in self.workers} | self._left
        for slot in range(self.size):
            if slot in taken or time.monotonic() < self._next_start:
                continue
            try:
                self._start_worker(slot)
            except OSError as error:
                self._start_failed(f"{type(error).__name__}: {error}")

    def _start_failed(self, reason: str) -> None:
        self._failed_starts += 1
        self.failed_start = reason
        # Retry at once the first time, then with growing delays.
        self._next_start = time.monotonic() + min(30, self._failed_starts // self.size)

    def _start_worker(self, slot: int) -> None:
        name = f"{self._prefix}-{next(self._numbers)}"
        log = self._folder / f"{name}.txt"
        # -P: do not import from the current folder.
        command = [sys.executable, "-P", "-m", f"{__package__}.worker_process"]
        command += [self._scheduler, name, str(self._folder), str(self._keys), str(self._idle_s), str(os.getpid())]
        own = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        # Block SIGINT in the new process until it ignores it, and here until the process is registered.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **_ENVIRONMENT, **own},
                    pass_fds=[self._keys],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            self.workers.append(_Worker(name, slot, process, log, active=time.monotonic()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Kill all workers: an idle one has nothing to finish, and a busy one may not react."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(2)
        self.workers = []

    def cannot_start(self) -> MachineError:
        """Return the error that the workers cannot be started."""
        return MachineError(
            f"the worker processes cannot be started ({private(self.failed_start)}), expected {self.size}. "
            "Check the limits of this machine (ulimit -a), or use fewer --jobs."
        )


def _is_ready(worker: _Worker) -> bool:
    with suppress(OSError):
        return worker.output.read_bytes().endswith(READY)
    return False


def _processor_s(process: int) -> float:
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:
        return -1.0
    return times.user + times.system


def _signal_name(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else ""


def _last_line(worker: _Worker) -> str:
    if line := last_line(worker.output):
        return line
    name = _signal_name(worker.process.returncode)
    return f"one was killed by {name}" if name else "one ended at once"


def last_line(file: Path) -> str:
    """Return the last line of a text file that is not empty, at most 300 letters; empty if there is none."""
    with suppress(OSError):
        lines = [line.strip() for line in file.read_text(errors="replace").split("\n")]
        return next((line for line in reversed(lines) if line), "")[:300]
    return ""
