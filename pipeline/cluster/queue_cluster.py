"""Cluster of jobs of a queueing system: the scheduler runs in this process, the workers in jobs on the nodes.

A job starts workers until it ends (see `job_process`). Jobs that have ended are followed by others as long as calls are
left, so that neither a time limit nor an idle job between two stages stops a run.
"""

import math
import os
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from ...data_manifests.errors import MachineError, UserError, private, some_of
from .cluster import Tended
from .job_process import LEFT_WORDS, ended_file
from .queue_systems import Queue
from .scheduler import OwnScheduler
from .worker_pool import last_line

POLL_S = 5.0
"""Interval at which the queueing system is asked."""
_LISTED_AFTER_S = 15.0
"""Time after which a submitted job is expected in the list of the queueing system."""
_BETWEEN_STAGES_S = 30.0
_FAILED_STARTS = 3
_CAUSE_LIMIT_S = 3.0


@dataclass
class _Job:
    name: str
    id: str
    log: Path
    submitted: float
    worked: bool = False
    """Whether one of its workers has been connected."""


class QueueCluster:
    """Jobs of a queueing system; see `Cluster`.

    The folder of temporary files, with the keys of the run, has to lie on a file system that the nodes share.

    Parameters
    ----------
    queue : Queue

    Raises
    ------
    UserError
        The queueing system refuses a job, or there is no such network interface.
    MachineError
        From `tend`: no worker came in time, or jobs end before their workers are ready.
    """

    def __init__(self, queue: Queue):
        self._queue, self._settings = queue, queue.settings
        self._jobs: list[_Job] = []
        self._submitted = self._failed_starts = 0
        self._reason = self._state = ""
        self._told: set[str] = set()
        self._ended: set[str] = set()
        self._waiting_since: float | None = None
        self._next_look = 0.0
        self._scheduler: OwnScheduler | None = None
        self._folder = TemporaryDirectory(prefix="voxout-", ignore_cleanup_errors=True)
        try:
            self._scheduler = OwnScheduler(_address(self._settings.interface))
            keys = Path(self._folder.name) / "keys"
            with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.pread(self._scheduler.keys, 2**20, 0))
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Any:
        """Client of the scheduler."""
        return self._scheduler.client if self._scheduler else None

    def tend(self, left: int) -> Tended:
        """Submit jobs in place of those that have ended, and as many as the calls that are left can use."""
        now = time.monotonic()
        if now < self._next_look or self._scheduler is None:
            return Tended()
        if now - self._next_look > _BETWEEN_STAGES_S:
            self._waiting_since = None  # no calls were left, so nothing was waited for
        self._next_look = now + POLL_S
        connected = self._scheduler.workers()
        for job in self._jobs:
            job.worked = job.worked or any(name.startswith(f"{job.name}-") for name in connected)
        if any(job.worked for job in self._jobs):
            self._failed_starts = 0
        dead = {file.name for file in Path(self._folder.name).glob("*.ended")} - self._ended
        self._ended |= dead
        lost = len(dead)
        states = self._queue.unfinished()
        if states is not None:
            lost += self._without_ended(states, now)
        self._submit_missing(left, now)
        return Tended(lost, self._notes(connected, states or {}, now))

    def _without_ended(self, states: dict[str, str], now: float) -> int:
        """Forget the jobs that have ended; return how many of them may have been at work."""
        lost = 0
        for job in list(self._jobs):
            if job.id in states or (now - job.submitted < _LISTED_AFTER_S and not last_line(job.log)):
                continue
            self._jobs.remove(job)
            last = last_line(job.log)
            if last == LEFT_WORDS:
                continue
            if job.worked:
                lost += 1
                continue
            self._failed_starts += 1
            self._reason = last or (
                "without a word, as if the output folder were not on a file system that the nodes share"
            )
        if self._failed_starts >= _FAILED_STARTS:
            raise MachineError(
                f"--cluster {self._queue.name}: {self._failed_starts} jobs ended before their workers were ready "
                f"({private(self._reason, 'see the terminal')}). Correct the settings of cluster (prologue, memory_gb, "
                "interface), and check that Python and the output folder have the same path on the nodes."
            )
        return lost

    def _submit_missing(self, left: int, now: float) -> None:
        wanted = min(self._settings.jobs, math.ceil(left / self._settings.cores))
        while len(self._jobs) < wanted:
            name = f"voxout-{self._submitted}"
            log = Path(self._folder.name) / f"{name}.txt"
            try:
                job = _Job(name, self._queue.submit(name, [self._command(name)], log), log, now)
            except UserError as error:
                if not self._jobs:
                    raise
                # Some sites limit the jobs of a user: go on with fewer.
                self._state = str(error)
                return
            self._submitted += 1
            self._jobs.append(job)

    def _command(self, name: str) -> str:
        """Return the command line of a job."""
        assert self._scheduler is not None
        python = [sys.executable, "-P", "-m", f"{__package__}.job_process", self._scheduler.address, name]
        python += [self._folder.name, str(self._settings.cores), str(self._settings.drain_after_s)]
        return f"exec {shlex.join(python)}"

    def _notes(self, connected: set[str], states: dict[str, str], now: float) -> tuple[str, ...]:
        """Return what the user should know, each once; stop a run that waits too long."""
        if connected:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        found = [states[job.id] for job in self._jobs if states.get(job.id)]
        waiting = [
            self._state,
            *([] if connected else [f"jobs in the queue: {some_of(sorted(set(found)))}"] if found else []),
        ]
        self._state = ""
        if self._waiting_since is not None and now - self._waiting_since > self._settings.wait_minutes * 60:
            raise MachineError(
                f"--cluster {self._queue.name}: no worker came in {self._settings.wait_minutes:g} minutes "
                f"({some_of(sorted(set(found))) or 'no job in the queue'}), expected one. Ask for less (cluster.time, "
                "memory_gb, cores, gpus), choose another partition, or set cluster.wait_minutes to wait longer."
            )
        new = tuple(note for note in waiting if note and note not in self._told)
        self._told |= set(new)
        return new

    def cause_of_death(self, worker: str) -> str:
        """Return the name of the signal that killed a worker; empty if it is not known."""
        file = ended_file(Path(self._folder.name), worker)
        give_up = time.monotonic() + _CAUSE_LIMIT_S
        while not file.exists() and time.monotonic() < give_up:
            time.sleep(0.1)
        return last_line(file)

    def abandon(self) -> None:
        """Cancel all jobs."""
        self._queue.cancel([job.id for job in self._jobs], limit_s=4)

    def close(self) -> None:
        """Cancel all jobs, end the scheduler and delete keys and temporary files."""
        self._queue.cancel([job.id for job in self._jobs])
        self._jobs = []
        if self._scheduler is not None:
            self._scheduler.close()
        self._folder.cleanup()


def _address(interface: str) -> str:
    """Return the address of an interface of this machine; by default, that of the default route."""
    if not interface:
        from distributed.utils import get_ip

        return str(get_ip())
    found: dict[str, list[str]] = {
        name: [str(entry.address) for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if not found.get(interface):
        raise UserError(
            f"cluster.interface: found no address of {interface} on this machine, expected one of "
            f"{', '.join(sorted(name for name, addresses in found.items() if addresses))}. Choose one that the nodes "
            "reach."
        )
    return found[interface][0]
