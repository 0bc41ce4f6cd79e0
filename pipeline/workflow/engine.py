"""Parallel execution of one function over many subjects; a subject that fails does not stop the others.

Dask distributed is used through its client only, so that the same calls can go to another cluster; `local_cluster`
starts the cluster on this machine.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, MachineError, SubjectError, UserError
from ...data_manifests.machine import machine_trouble
from .console import Progress
from .local_cluster import LocalCluster

_TEND_S = 0.5
"""Interval at which the workers are checked while calls are running."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


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
        Number of subjects processed in parallel.
    scratch : Path, optional
        Parent folder of temporary files; by default the system's temporary folder.
    """

    def __init__(self, jobs: int | None = None, scratch: Path | None = None):
        self.jobs = jobs or usable_cores()
        self._scratch = scratch
        self._cluster: LocalCluster | None = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
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
            ``say(text, **facts)`` is called when workers had to be replaced (see `Console.say`).

        Raises
        ------
        MachineError
            No call can continue: no worker can be started, or a call hit a problem of the machine.
        """
        if not calls:
            return Outcome({}, ())
        if self._cluster is None:
            self._cluster = LocalCluster(self.jobs, self._scratch)
        client = self._cluster.client
        futures = {client.submit(_guarded, function, *call, pure=False): call[0] for call in calls}
        waiting: SimpleQueue[Any] = SimpleQueue()
        for future in futures:
            future.add_done_callback(waiting.put)
        results: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        replaced = done = 0
        while done < len(calls):
            if lost := self._cluster.tend():
                replaced += lost
                if say is not None:
                    say(f"    {_replaced(lost)}", stage=stage, workers_replaced=replaced)
            try:
                future = waiting.get(timeout=_TEND_S)
            except Empty:
                continue
            try:
                result, reason = _collected(future, futures[future])
            except TimeoutError:
                # The result was lost with its worker, and is computed again.
                waiting.put(future)
                continue
            if isinstance(reason, MachineError):
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


def _replaced(lost: int) -> str:
    if lost == 1:
        return "a worker stopped responding and was replaced; its subject is processed again"
    return f"{lost} workers stopped responding and were replaced; their subjects are processed again"


def _collected(future: Any, subject: SubjectRecord) -> tuple[Any, str | MachineError | None]:
    try:
        return future.result(timeout=5)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 (one of Dask's many, since `_guarded` catches those of the call)
        name = type(error).__name__
        return None, f"{subject.key}: its worker process died ({name}), probably out of memory. Use fewer --jobs."


def _guarded(
    function: Callable[..., Any], subject: SubjectRecord, *arguments: Any
) -> tuple[Any, str | MachineError | None]:
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
