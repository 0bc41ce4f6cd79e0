"""Scheduler of a run, in this process: worker processes connect to it and execute its calls.

All connections are encrypted, and only processes that have the keys of this run are accepted.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from ...data_manifests.errors import MachineError, private
from .worker_process import no_pages, security_by

_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.http.routes": [],
    # Stopped workers are detected by their pool, which tells them from workers in long compiled code.
    "distributed.scheduler.worker-ttl": None,
}
_REFUSED = (OSError, RuntimeError, AssertionError, ImportError, MemoryError)
"""Errors of Dask's start where the system refuses threads, sockets or memory."""
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")


class OwnScheduler:
    """Scheduler and client in this process.

    Parameters
    ----------
    host : str
        Address of this machine at which the scheduler listens.

    Attributes
    ----------
    client : distributed.Client
    keys : int
        File descriptor of the private key and certificate of the run. In memory only: some file systems show all files
        to all users, and a killed process deletes none.

    Raises
    ------
    MachineError
        The scheduler cannot be started.
    """

    def __init__(self, host: str):
        self._host = host
        self._cluster: Any = None
        self.client: Any = None
        self._quiet = ExitStack()
        self.keys = os.memfd_create("keys")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Address for workers, such as ``"tls://127.0.0.1:41234"``."""
        return self._cluster.scheduler_address

    def workers(self) -> set[str]:
        """Return the names of the workers that are connected."""
        return {str(state.name) for state in list(self._cluster.scheduler.workers.values())}

    def _start(self) -> None:
        for attempt in (1, 2):
            try:
                # Not in the main thread: Ctrl-C would interrupt Dask's start and leave parts that cannot be closed.
                with ThreadPoolExecutor(1) as opener:
                    opener.submit(self._open).result()
                return
            except _REFUSED as error:
                if attempt == 2:
                    raise MachineError(
                        f"the scheduler of the worker processes cannot be started "
                        f"({private(f'{type(error).__name__}: {error}')}). Check the limits of this machine "
                        "(ulimit -a), or use fewer --jobs."
                    ) from error
                self._close_parts()

    def _open(self) -> None:
        from dask import config
        from distributed import Client, Scheduler, SpecCluster

        class SchedulerWithoutPages(Scheduler):
            start_http_server = no_pages

        self._quiet.enter_context(quiet())
        os.ftruncate(self.keys, 0)
        os.pwrite(self.keys, _new_keys(), 0)
        security = security_by(self.keys)
        options = {
            # A subject whose worker dies is tried once more, without loss of waiting subjects.
            "allowed_failures": 1,
            "dashboard": False,
            "host": self._host,
            "protocol": "tls://",
            "security": security,
        }
        with config.set(_SETTINGS):
            self._cluster = SpecCluster(
                workers={}, scheduler={"cls": SchedulerWithoutPages, "options": options}, security=security
            )
            # What its event loop still has to say after the end, such as connections given up, is no one's concern.
            self._cluster.loop.asyncio_loop.set_exception_handler(lambda *_: None)
            self.client = Client(self._cluster, set_as_default=False, timeout=10)

    def close(self) -> None:
        """End the scheduler and its connections, and forget the keys."""
        if self._close_parts():  # otherwise it goes on closing connections, and would tell of each
            self._quiet.close()
        os.close(self.keys)

    def _close_parts(self) -> bool:
        """Return whether all of them have ended."""
        ended = True
        for part in (self.client, self._cluster):
            if part is not None:
                try:
                    part.close(timeout=2)
                except Exception:  # noqa: BLE001 (whatever it is, there is nothing left to do)
                    ended = False
        self.client = self._cluster = None
        return ended


def _new_keys() -> bytes:
    """Make a private key and certificate, since ports on loopback are open to all users of the machine."""
    from distributed.security import Security

    made = Security.temporary()
    return f"{made.tls_client_key}{made.tls_client_cert}".encode()


def quiet() -> ExitStack:
    """Hide Dask's log lines, once it is imported, until the result is closed: users get messages of voxout instead."""
    before = ExitStack()
    for logger in map(logging.getLogger, _LOGGERS):
        before.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
    return before
