"""Worker process of the local cluster, which executes the calls of its scheduler.

``python -m voxout.pipeline.workflow.worker_process SCHEDULER NAME FOLDER KEYS PARENT``: address of the scheduler, name
of the worker, folder of its temporary files, file descriptor of the cluster's keys, and id of the parent process.
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
    """Work until the scheduler ends."""
    # The kernel kills this process when its parent ends, also while compiled code blocks Python's threads.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return
    # Ctrl-C reaches all processes of a terminal; only the parent reacts to it.
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
        # Hide the output of libraries: failures are returned as messages.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        await worker.finished()


def security_by(keys: int) -> Any:
    """Return Dask's security settings, by which the processes of a cluster authenticate each other.

    Parameters
    ----------
    keys : int
        File descriptor of a private key and its certificate.
    """
    from distributed.security import Security

    file = f"/proc/self/fd/{keys}"
    own = {f"tls_{role}_{part}": file for role in ("client", "scheduler", "worker") for part in ("key", "cert")}
    return Security(require_encryption=True, tls_ca_file=file, **own)


def no_pages(*_: object, **__: object) -> None:
    """Replace Dask's web server, which is not needed and would be open to all users of the machine."""


if __name__ == "__main__":
    main(*sys.argv[1:])
