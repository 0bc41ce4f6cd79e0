"""Local cluster: scheduler and client in this process, worker processes on the same machine."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .cluster import Tended
from .limits import require_address_space, require_loopback, require_open_files
from .scheduler import OwnScheduler
from .worker_pool import WorkerPool

HOST = "127.0.0.1"
START_LIMIT_S = 45.0


class LocalCluster:
    """A scheduler and single-threaded workers on this machine; see `Cluster`.

    Parameters
    ----------
    jobs : int
        Number of workers.
    scratch : Path or None
        Parent of its folder of temporary files; None: the system's temporary folder.

    Raises
    ------
    MachineError
        The cluster cannot be started, or, from `tend`, no worker can be replaced.
    """

    def __init__(self, jobs: int, scratch: Path | None = None):
        require_loopback()
        require_open_files(jobs)
        require_address_space()
        self._ended: dict[str, str] = {}
        self._folder = TemporaryDirectory(prefix="voxout-", dir=scratch, ignore_cleanup_errors=True)
        self._scheduler: OwnScheduler | None = None
        self.pool: WorkerPool | None = None
        try:
            self._scheduler = OwnScheduler(HOST)
            self.pool = WorkerPool(
                jobs,
                self._scheduler.address,
                self._scheduler.keys,
                Path(self._folder.name),
                on_end=self._ended.__setitem__,
            )
            self._wait_for_workers(self.pool)
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Any:
        """Client of the scheduler."""
        return self._scheduler.client if self._scheduler else None

    @staticmethod
    def _wait_for_workers(pool: WorkerPool) -> None:
        give_up = time.monotonic() + START_LIMIT_S
        while True:
            pool.tend()
            if pool.ready == pool.size:
                return
            if time.monotonic() > give_up:
                if pool.ready:
                    return  # the others join when they are ready
                pool.failed_start = pool.failed_start or f"none was ready after {START_LIMIT_S:.0f} s"
                raise pool.cannot_start()
            time.sleep(0.05)

    def tend(self, left: int) -> Tended:
        """Replace the workers that have ended or stopped."""
        return Tended(self.pool.tend() if self.pool else 0)

    def cause_of_death(self, worker: str) -> str:
        """Return the name of the signal that killed a worker; empty if it is not known."""
        if self.pool is not None and worker not in self._ended:
            self.pool.tend()
        return self._ended.get(worker, "")

    def abandon(self) -> None:
        """Do nothing: the system kills the workers with this process."""

    def close(self) -> None:
        """End all processes and delete the temporary files."""
        if self.pool is not None:
            self.pool.close()
        if self._scheduler is not None:
            self._scheduler.close()
        self._folder.cleanup()
