"""A worker of the local cluster, as a process: takes calls from its scheduler until either of them ends.

``python -m voxout.pipeline.worker_process SCHEDULER NAME FOLDER PARENT``: the scheduler's address, the worker's name,
the folder of the cluster's keys and temporary files, and the number of the process that started it.
"""

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
HOST = "127.0.0.1"
KEY, CERTIFICATE = "key.pem", "certificate.pem"


def main(scheduler: str, name: str, folder: str, parent: str) -> None:
    """Work until the scheduler is gone."""
    # The kernel does it, also while compiled code keeps Python's threads from running.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return
    # Ctrl-C reaches all processes of a terminal; what it means, the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    asyncio.run(_work(scheduler, name, Path(folder)))


async def _work(scheduler: str, name: str, folder: Path) -> None:
    from distributed import Worker

    class WorkerWithoutPages(Worker):
        start_http_server = no_pages

    async with WorkerWithoutPages(
        scheduler,
        name=name,
        nthreads=1,
        memory_limit=0,
        security=keys_in(folder),
        protocol="tls://",
        host=HOST,
        local_directory=str(folder),
    ) as worker:
        # What libraries print is not for the user: a subject that fails comes back as a sentence.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        await worker.finished()


def keys_in(folder: Path) -> Any:
    """What proves to the others of a cluster that a process belongs to it, as Dask takes it."""
    from distributed.security import Security

    key, certificate = str(folder / KEY), str(folder / CERTIFICATE)
    roles = {f"tls_{role}_key": key for role in ("client", "scheduler", "worker")}
    roles |= {f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")}
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)


def no_pages(*_: object, **__: object) -> None:
    """In place of Dask's web server, which nothing here looks at and every user of the machine could."""


if __name__ == "__main__":
    main(*sys.argv[1:])
