"""Local cluster of worker processes, which execute the engine's calls.

The scheduler and its client run in this process, each worker in a separate one. A worker that has ended or stopped is
replaced; the same code starts the first workers.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from ...data_manifests.errors import MachineError, private
from .limits import require_address_space, require_loopback, require_open_files
from .worker_process import HOST, no_pages, security_by

# One thread per worker: ANTs is bit-reproducible only then, and parallel subjects use the cores better.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
_SCHEDULER_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.http.routes": [],
    # Stopped workers are detected in `tend`, which tells them from workers in long compiled code.
    "distributed.scheduler.worker-ttl": None,
}
_REFUSED = (OSError, RuntimeError, AssertionError, ImportError, MemoryError)
"""Errors of Dask's start where the system refuses threads, sockets or memory."""
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")
START_LIMIT_S = 45.0
STILL_LIMIT_S = 60.0
"""A worker without processor time for this long has stopped: even an idle one wakes up many times a second."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    output: Path
    """File with the output of its start."""
    active: float
    """Last time at which it was found to use the processor."""
    processor_s: float = 0.0
    ready: bool = False


class LocalCluster:
    """A scheduler and single-threaded workers on this machine.

    Parameters
    ----------
    jobs : int
        Number of workers.
    scratch : Path or None
        Parent of its folder of temporary files; None: the system's temporary folder.

    Attributes
    ----------
    client : distributed.Client

    Raises
    ------
    MachineError
        The cluster cannot be started, or, from `tend`, no worker can be replaced.
    """

    def __init__(self, jobs: int, scratch: Path | None = None):
        self.jobs = jobs
        self._workers: list[_Worker] = []
        self._numbers = count()
        self._failed_starts = 0
        self._reason = ""
        self._next_start = self._tended = time.monotonic()
        self._cluster: Any = None
        self.client: Any = None
        require_loopback()
        require_open_files(jobs)
        require_address_space()
        self._folder = TemporaryDirectory(prefix="voxout-", dir=scratch, ignore_cleanup_errors=True)
        self._closing = ExitStack()
        # In memory only: some file systems show all files to all users, and a killed process deletes none.
        self._keys = os.memfd_create("keys")
        self._closing.callback(os.close, self._keys)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for attempt in (1, 2):
            try:
                # Not in the main thread: Ctrl-C would interrupt Dask's start and leave parts that cannot be closed.
                with ThreadPoolExecutor(1) as opener:
                    opener.submit(self._open).result()
                break
            except _REFUSED as error:
                self._reason = f"{type(error).__name__}: {error}"
                if attempt == 2:
                    raise self._cannot_start() from error
                self._close_scheduler()
        give_up = time.monotonic() + START_LIMIT_S
        while True:
            self.tend()
            ready = sum(worker.ready for worker in self._workers)
            if ready == self.jobs:
                return
            if time.monotonic() > give_up:
                if ready:
                    return  # the others join when they are ready
                self._reason = self._reason or f"none was ready after {START_LIMIT_S:.0f} s"
                raise self._cannot_start()
            time.sleep(0.05)

    def _open(self) -> None:
        from dask import config
        from distributed import Client, Scheduler, SpecCluster

        class SchedulerWithoutPages(Scheduler):
            start_http_server = no_pages

        self._closing.enter_context(_quiet())
        os.ftruncate(self._keys, 0)
        os.pwrite(self._keys, _new_keys(), 0)
        security = security_by(self._keys)
        options = {
            # A subject whose worker dies is tried once more, without loss of waiting subjects.
            "allowed_failures": 1,
            "dashboard": False,
            "host": HOST,
            "protocol": "tls://",
            "security": security,
        }
        with config.set(_SCHEDULER_SETTINGS):
            self._cluster = SpecCluster(
                workers={}, scheduler={"cls": SchedulerWithoutPages, "options": options}, security=security
            )
            # What its event loop still has to say after the end, such as connections given up, is no one's concern.
            self._cluster.loop.asyncio_loop.set_exception_handler(lambda *_: None)
            self.client = Client(self._cluster, set_as_default=False, timeout=10)

    def tend(self) -> int:
        """Replace the workers that have ended or stopped; return how many of them were ready for calls."""
        now = time.monotonic()
        asleep = now - self._tended > STILL_LIMIT_S / 2  # this process was suspended, and the workers with it
        self._tended = now
        known = {state.name for state in list(self._cluster.scheduler.workers.values())}
        lost = 0
        for worker in list(self._workers):
            if not worker.ready and worker.output.stem in known:
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
            self._workers.remove(worker)
            if worker.ready:
                lost += 1
            else:
                self._start_failed(_last_line(worker))
        if self._failed_starts >= 2 * self.jobs and not any(worker.ready for worker in self._workers):
            raise self._cannot_start()
        while len(self._workers) < self.jobs and time.monotonic() >= self._next_start:
            try:
                self._start_worker()
            except OSError as error:
                self._start_failed(f"{type(error).__name__}: {error}")
        return lost

    def _start_failed(self, reason: str) -> None:
        self._failed_starts += 1
        self._reason = reason
        # Retry at once the first time, then with growing delays.
        self._next_start = time.monotonic() + min(30, self._failed_starts // self.jobs)

    def _start_worker(self) -> None:
        name = f"worker-{next(self._numbers)}"
        log = Path(self._folder.name) / f"{name}.txt"
        # -P: do not import from the current folder.
        command = [sys.executable, "-P", "-m", f"{__package__}.worker_process"]
        command += [self._cluster.scheduler_address, name, self._folder.name, str(self._keys), str(os.getpid())]
        # Block SIGINT in the new process until it ignores it, and here until the process is registered.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **_WORKER_ENVIRONMENT},
                    pass_fds=[self._keys],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            self._workers.append(_Worker(process, log, active=time.monotonic()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End all processes and delete the temporary files."""
        # Kill: an idle worker has nothing to finish, and a busy one may not react.
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(2)
        self._workers = []
        self._close_scheduler()
        self._folder.cleanup()
        self._closing.close()

    def _close_scheduler(self) -> None:
        for part in (self.client, self._cluster):
            if part is not None:
                with suppress(Exception):
                    part.close(timeout=2)
        self.client = self._cluster = None

    def _cannot_start(self) -> MachineError:
        return MachineError(
            f"the worker processes cannot be started ({private(self._reason)}), expected {self.jobs}. "
            "Check the limits of this machine (ulimit -a), or use fewer --jobs."
        )


def _new_keys() -> bytes:
    """Make a private key and certificate, since ports on loopback are open to all users of the machine."""
    from distributed.security import Security

    made = Security.temporary()
    return f"{made.tls_client_key}{made.tls_client_cert}".encode()


def _processor_s(process: int) -> float:
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:
        return -1.0
    return times.user + times.system


def _last_line(worker: _Worker) -> str:
    with suppress(OSError):
        lines = worker.output.read_text(errors="replace").split("\n")
        if lines := [line.strip() for line in lines if line.strip()]:
            return lines[-1][:300]
    code = worker.process.returncode
    return f"one was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else "one ended at once"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Dask's log lines, once it is imported: users get messages of voxout instead."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
