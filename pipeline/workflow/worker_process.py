"""A worker of the local cluster, as a process: takes calls from its scheduler until either of them ends.

``python -m voxout.pipeline.worker_process SCHEDULER NAME FOLDER KEYS PARENT``: the scheduler's address, the worker's
name, the folder of its temporary files, the descriptor of the cluster's keys, and the process that started it.
"""

import asyncio
import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
HOST = "127.0.0.1"


def main(scheduler: str, name: str, folder: str, keys: str, parent: str) -> None:
    """Work until the scheduler is gone."""
    # The kernel does it, also while compiled code keeps Python's threads from running.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return
    # Ctrl-C reaches all processes of a terminal; what it means, the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.set_inheritable(int(keys), False)
    asyncio.run(_work(scheduler, name, folder, int(keys)))


async def _work(scheduler: str, name: str, folder: str, keys: int) -> None:
    from distributed import Worker

    class WorkerWithoutPages(Worker):
        start_http_server = no_pages

    async with WorkerWithoutPages(
        scheduler,
        name=name,
        nthreads=1,
        memory_limit=0,
        security=security_by(keys),
        protocol="tls://",
        host=HOST,
        local_directory=folder,
    ) as worker:
        # What libraries print is not for the user: a subject that fails comes back as a sentence.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        await worker.finished()


def security_by(keys: int) -> Any:
    """Dask's way to have the processes of a cluster prove to each other that they belong to it.

    Parameters
    ----------
    keys : int
        Descriptor of a file with a private key and its certificate.
    """
    from distributed.security import Security

    file = f"/proc/self/fd/{keys}"
    own = {f"tls_{role}_{part}": file for role in ("client", "scheduler", "worker") for part in ("key", "cert")}
    return Security(require_encryption=True, tls_ca_file=file, **own)


def no_pages(*_: object, **__: object) -> None:
    """In place of Dask's web server, which nothing here looks at and every user of the machine could."""


if __name__ == "__main__":
    main(*sys.argv[1:])
