"""Worker process, which executes the calls of its scheduler.

``python -m voxout.pipeline.cluster.worker_process SCHEDULER NAME FOLDER KEYS IDLE_S PARENT``: address of the scheduler,
name of the worker, folder of its temporary files, file descriptor of the keys of the run, seconds without calls after
which it leaves, and id of the parent process.
"""

import asyncio
import ctypes
import math
import os
import signal
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

_PR_SET_PDEATHSIG = 1
READY = b"ready\n"
"""Last words of its output, when it is connected."""
LEFT = 64
"""Exit code of a worker that has left since it was asked to, or had no calls."""
_LOOK_S = 0.5
_CONNECT_LIMIT_S = 30


def main(scheduler: str, name: str, folder: str, keys: str, idle_s: str, parent: str) -> None:
    """Work until the scheduler ends, or until the worker leaves."""
    if not follow_parent(int(parent)):
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.set_inheritable(int(keys), False)
    left = asyncio.run(_work(scheduler, name, folder, int(keys), float(idle_s)))
    # A thread may still be in compiled code.
    os._exit(LEFT if left else 0)


def follow_parent(parent: int) -> bool:
    """End together with the parent process; return whether it still runs."""
    # The kernel kills this process when its parent ends, also while compiled code blocks Python's threads.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Ctrl-C reaches all processes of a terminal; only the parent reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return os.getppid() == parent


async def _work(scheduler: str, name: str, folder: str, keys: int, idle_s: float) -> bool:
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
        host=address_towards(scheduler),
        local_directory=folder,
        # On a node, it would try for ever to reach the scheduler of a run that was killed.
        death_timeout=_CONNECT_LIMIT_S if math.isfinite(idle_s) else None,
    ) as worker:
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.write(1, READY)
        # Hide the output of libraries: failures are returned as messages.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        leaving = asyncio.create_task(_leave(worker, asked, idle_s))
        await worker.finished()
        return leaving.done()


async def _leave(worker: Any, asked: asyncio.Event, idle_s: float) -> None:
    """Close the worker once it has no calls: at once if it is asked to leave, otherwise after `idle_s`."""
    from distributed.core import Status

    last_busy, count = time.monotonic(), 0
    while True:
        if asked.is_set() and worker.status == Status.running:
            worker.status = Status.paused  # no new calls; the running one goes on
        if worker.state.executing_count or worker.state.executed_count != count:
            last_busy, count = time.monotonic(), worker.state.executed_count
        elif asked.is_set() or time.monotonic() - last_busy > idle_s:
            break
        await asyncio.sleep(_LOOK_S if math.isfinite(idle_s) or asked.is_set() else 1)
    # Not awaited: closing cancels what is not part of it, such as this.
    worker.loop.add_callback(worker.close_gracefully)


def address_towards(scheduler: str) -> str:
    """Return the address of this machine on the network of the scheduler, so that the worker listens there only."""
    place = urlsplit(scheduler)
    family = socket.AF_INET6 if place.hostname and ":" in place.hostname else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        probe.connect((place.hostname, place.port))
        return probe.getsockname()[0]


def security_by(keys: int) -> Any:
    """Return Dask's security settings, by which the processes of a run authenticate each other.

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
