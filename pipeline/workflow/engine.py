"""Parallel execution of one function over many subjects; a subject that fails does not stop the others.

Dask distributed is used through its client only, so that the same calls go to workers on this machine or on the nodes
of a cluster (see `Cluster`).
"""

import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, MachineError, SubjectError, UserError
from ...data_manifests.machine import machine_trouble
from ..cluster.cluster import Cluster
from ..cluster.local_cluster import LocalCluster
from .console import Progress
from .interruption import closed_by

_TEND_S = 0.5
"""Interval at which the workers are checked while calls are running."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def current_umask() -> int:
    """Return the umask of this process, by which the system limits who can read what it writes."""
    # The system tells it only to who sets it; a file that another thread makes meanwhile is its owner's alone.
    found = os.umask(0o077)
    os.umask(found)
    return found


@dataclass(frozen=True)
class Outcome:
    """Results by subject key, in the order of the subjects, and the failures."""

    results: dict[str, Any]
    failures: tuple[Failure, ...]


class Engine:
    """Pool of single-threaded workers, started at the first use.

    Parameters
    ----------
    jobs : int
        Number of subjects processed in parallel on this machine, and of threads of other work.
    scratch : Path, optional
        Parent folder of temporary files; by default the system's temporary folder.
    start_cluster : callable, optional
        Starts the cluster that executes the calls; by default `jobs` workers on this machine.
    """

    def __init__(
        self,
        jobs: int | None = None,
        scratch: Path | None = None,
        *,
        start_cluster: Callable[[], Cluster] | None = None,
    ):
        self.jobs = jobs or usable_cores()
        self._start_cluster = start_cluster or (lambda: LocalCluster(self.jobs, scratch))
        self._cluster: Cluster | None = None
        self._closing = ExitStack()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def map(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[SubjectRecord, *tuple[Any, ...]]],
        *,
        stage: str,
        progress: Progress | None = None,
        say: Callable[..., None] | None = None,
    ) -> Outcome:
        """Execute all calls ``function(subject, ...)``.

        A `UserError` or a crash of one call becomes a `Failure`, and the others continue. A call whose worker dies is
        repeated, so a long function should first look for its finished result on disk.

        Parameters
        ----------
        function : callable
        calls : sequence of tuple
        stage : str
        progress : callable, optional
        say : callable, optional
            ``say(text, **facts)`` is called when workers had to be replaced, and with messages of the cluster (see
            `Console.say`).

        Raises
        ------
        MachineError
            No call can continue: no worker can be started, a call hit a problem of the machine, or the scheduler is
            gone.
        """
        if not calls:
            return Outcome({}, ())
        if self._cluster is None:
            self._cluster = self._start_cluster()
            self._closing.enter_context(closed_by(self._cluster.abandon))
        client = self._cluster.client
        umask = current_umask()
        futures = {client.submit(_guarded, umask, function, *call, pure=False): call[0] for call in calls}
        waiting: SimpleQueue[Any] = SimpleQueue()
        for future in futures:
            future.add_done_callback(waiting.put)
        results: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        replaced = done = 0
        while done < len(calls):
            tended = self._cluster.tend(len(calls) - done)
            replaced += tended.lost
            if say is not None:
                for note in tended.notes:
                    say(f"    {note}", stage=stage)
                if tended.lost:
                    say(f"    {_replaced(tended.lost)}", stage=stage, workers_replaced=replaced)
            try:
                future = waiting.get(timeout=_TEND_S)
            except Empty:
                continue
            try:
                result, reason = self._collected(future, futures[future])
            except TimeoutError:
                # The result was lost with its worker, and is computed again.
                waiting.put(future)
                continue
            if isinstance(reason, MachineError):
                if future.status != "cancelled":  # without a connection, it would wait for one
                    client.cancel(list(futures))
                raise reason
            key = futures[future].key
            if reason is None:
                results[key] = result
            else:
                failures[key] = Failure(key, stage, reason)
            future.release()
            done += 1
            if progress is not None:
                progress(done, len(calls), key)
        ordered = [subject.key for subject, *_ in calls]
        return Outcome(
            {key: results[key] for key in ordered if key in results},
            tuple(failures[key] for key in ordered if key in failures),
        )

    def _collected(self, future: Any, subject: SubjectRecord) -> tuple[Any, str | MachineError | None]:
        try:
            return future.result(timeout=5)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 (one of Dask's many, since `_guarded` catches those of the call)
            if future.status == "cancelled":  # by Dask, as all others
                return None, MachineError(_DISCONNECTED)
            worker = getattr(error, "last_worker", None)  # of KilledWorker
            cause = self._cluster.cause_of_death(str(worker.name)) if self._cluster and worker else ""
            return None, f"{subject.key}: its worker process {_died(cause)}"


_DISCONNECTED = (
    "the connection to the scheduler of the workers was lost, expected it to last until the end. Check the network, "
    "and with --scheduler whether the scheduler still runs; then give the same command again: what is finished is kept."
)
_CAUSES = {
    "SIGKILL": "probably out of memory. Use fewer --jobs, or more memory for each",
    "SIGSEGV": "a crash in compiled code. Look at the scan; if it is good, report this",
    "SIGABRT": "a crash in compiled code. Look at the scan; if it is good, report this",
    "SIGBUS": "a full or unreachable disk, or a crash in compiled code. Check the disks",
}


def _died(cause: str) -> str:
    """Return what killed the two workers that a call was given to, by the signal of the last one."""
    if cause in _CAUSES:
        return f"died twice (last by {cause}), {_CAUSES[cause]}."
    return f"died twice{f' (last by {cause})' if cause else ''}, probably out of memory. Use fewer --jobs."


def _replaced(lost: int) -> str:
    if lost == 1:
        return "a worker stopped responding and was replaced; its subject is processed again"
    return f"{lost} workers stopped responding and were replaced; their subjects are processed again"


def _guarded(
    umask: int, function: Callable[..., Any], subject: SubjectRecord, *arguments: Any
) -> tuple[Any, str | MachineError | None]:
    # On the nodes of a cluster, it may be another one than where the command was given.
    before = os.umask(umask)
    try:
        return function(subject, *arguments), None
    except MachineError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 (a bug in one subject does not stop the others)
        # Problems of the machine are not caused by the scan, and all subjects would fail.
        out = next((given.root for given in arguments if isinstance(given, OutputFolder)), None)
        if (trouble := machine_trouble(error, out)) is not None:
            return None, MachineError(trouble)
        if isinstance(error, SubjectError):
            return None, str(error)
        if isinstance(error, UserError):
            return None, f"{subject.key}: {error}"
        # A bug, or a library that failed on this scan. Its own message is left out, since it may contain a path.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        return None, f"{subject.key}: {type(error).__name__} in {place}. Look at the scan; if it is good, report this."
    finally:
        os.umask(before)
