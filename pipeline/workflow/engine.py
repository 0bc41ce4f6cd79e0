"""Runs one function over many subjects, in parallel; one broken subject costs only itself.

Dask distributed does the work, spoken to through its client alone, so that the same calls can go to another cluster;
how the cluster on this machine is started is `local_cluster`'s.
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

_LOOK_S = 0.5
"""How often the workers are looked after while calls are waited for."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Outcome:
    """Results by subject key, in the subjects' order, and the subjects that failed."""

    results: dict[str, Any]
    failures: tuple[Failure, ...]


class Engine:
    """Single-threaded workers, started at the first use.

    Parameters
    ----------
    jobs : int
        Number of subjects worked on at once.
    scratch : Path, optional
        Where temporary files are kept while it works; by default in the system's temporary folder.
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
        """Make every call: ``function(subject, ...)``.

        A `UserError` or a crash of one call becomes a `Failure` and the rest go on. A call whose worker dies is tried
        again, so a function that takes long looks first for its own finished result on disk.

        Parameters
        ----------
        function : callable
        calls : sequence of tuple
        stage : str
        progress : callable, optional
        say : callable, optional
            ``say(text, **facts)`` is told of workers that had to be replaced (see `Console.say`).

        Raises
        ------
        MachineError
            No call can go on: no worker can be started, or a call met trouble that the others would meet, too.
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
                future = waiting.get(timeout=_LOOK_S)
                result, reason = _collected(future, futures[future])
            except Empty:
                continue
            except TimeoutError:
                # The result died with its worker, and is being computed again.
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
        return "a worker stopped answering and was replaced; its subject is done by another"
    return f"{lost} workers stopped answering and were replaced; their subjects are done by others"


def _collected(future: Any, subject: SubjectRecord) -> tuple[Any, str | MachineError | None]:
    try:
        return future.result(timeout=5)
    except TimeoutError:
        raise
    except Exception as error:
        return None, f"{subject.key}: its worker process died ({type(error).__name__}): out of memory?"


def _guarded(
    function: Callable[..., Any], subject: SubjectRecord, *arguments: Any
) -> tuple[Any, str | MachineError | None]:
    try:
        return function(subject, *arguments), None
    except MachineError as error:
        return None, error
    except Exception as error:
        # Every other subject would fail alike, and none of their scans is to blame.
        out = next((given.root for given in arguments if isinstance(given, OutputFolder)), None)
        if (trouble := machine_trouble(error, out)) is not None:
            return None, MachineError(trouble)
        if isinstance(error, SubjectError):
            return None, str(error)
        if isinstance(error, UserError):
            return None, f"{subject.key}: {error}"
        # A bug, or a library that gave up on this scan. Its own words stay out: they may hold a path.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        return None, f"{subject.key}: {type(error).__name__} in {place}. Look at the scan; if it is sound, report this."
