"""Runs one function over many subjects, in parallel; one broken subject costs only itself.

Dask distributed does the work, spoken to through its client alone, so that the same calls can go to another cluster.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.errors import Failure, MachineError, SubjectError, UserError
from ..data_manifests.machine import machine_trouble
from ..data_manifests.subject import SubjectRecord
from .console import Progress

# One thread a worker: ANTs is bit-reproducible only then, and subjects in parallel use the cores better.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Outcome:
    """Results by subject key, in the subjects' order, and the subjects that failed."""

    results: dict[str, Any]
    failures: tuple[Failure, ...]


class Engine:
    """A local cluster of single-threaded workers, started at the first use.

    Parameters
    ----------
    jobs : int
        Number of subjects worked on at once.
    """

    def __init__(self, jobs: int | None = None):
        self.jobs = jobs or usable_cores()
        self._client: Any = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._cluster.close()
            self._scratch.cleanup()
            self._client = None

    def map(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[SubjectRecord, *tuple[Any, ...]]],
        *,
        stage: str,
        progress: Progress | None = None,
    ) -> Outcome:
        """Make every call: ``function(subject, ...)``.

        A `UserError` or a crash of one call becomes a `Failure` and the rest go on. A call whose worker dies is tried
        again, so a function that takes long looks first for its own finished result on disk.
        """
        if not calls:
            return Outcome({}, ())
        from dask.distributed import as_completed

        client = self._started()
        futures = {client.submit(_guarded, function, *call, pure=False): call[0] for call in calls}
        results: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        for done, future in enumerate(as_completed(futures), start=1):
            subject = futures[future]
            try:
                # A result that died with its worker is computed again while this waits.
                result, reason = future.result()
            except Exception as error:
                result, reason = (
                    None,
                    f"{subject.key}: its worker process died ({type(error).__name__}): out of memory?",
                )
            if isinstance(reason, MachineError):
                client.cancel(list(futures))
                raise reason
            if reason is None:
                results[subject.key] = result
            else:
                failures[subject.key] = Failure(subject.key, stage, reason)
            future.release()
            if progress is not None:
                progress(done, len(calls), subject.key)
        ordered = [subject.key for subject, *_ in calls]
        return Outcome(
            {key: results[key] for key in ordered if key in results},
            tuple(failures[key] for key in ordered if key in failures),
        )

    def _started(self) -> Any:
        if self._client is None:
            from dask import config
            from dask.distributed import Client, LocalCluster
            from distributed.security import Security

            config.set(
                {
                    "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
                    # A subject that kills its worker gets one more try, and takes no waiting subject with it.
                    "distributed.scheduler.allowed-failures": 1,
                    "distributed.scheduler.worker-saturation": 1.0,
                    "distributed.logging.distributed": "error",
                    # Pages that nothing here looks at, on ports that every user of the machine could read.
                    "distributed.scheduler.http.routes": [],
                    "distributed.worker.http.routes": [],
                }
            )
            self._scratch = TemporaryDirectory(prefix="voxout-", ignore_cleanup_errors=True)
            self._cluster = LocalCluster(
                # A port on loopback is open to every user of the machine: only who has the keys, made anew for this
                # cluster, may send work through it.
                security=Security.temporary(),
                protocol="tls://",
                local_directory=self._scratch.name,
                worker_dashboard_address="127.0.0.1:0",
                n_workers=self.jobs,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",  # any free port: a second run on the machine has its own
                host="127.0.0.1",
                memory_limit=0,
                silence_logs=50,
            )
            self._client = Client(self._cluster)
        return self._client


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
