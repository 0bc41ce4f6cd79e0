"""Program of a job on a cluster, which keeps workers running until the job has to end.

``python -m voxout.pipeline.cluster.job_process SCHEDULER NAME FOLDER CORES DRAIN_AFTER_S``: address of the scheduler,
name of the job, folder of the run's temporary files, with its keys, number of workers, and seconds after which it
begins no more calls.

A job leaves the queue before its time limit, when its workers have finished the calls that they are at, and when it has
had no calls for some minutes.
"""

import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.caches import choose_caches
from ...data_manifests.errors import UserError, for_terminal
from .limits import require_address_space, require_open_files
from .worker_pool import WorkerPool

IDLE_S = 120.0
LEFT_WORDS = "left"
"""Last line of the output of a job that has ended by its own decision."""
_LOOK_S = 0.2


def ended_file(folder: Path, worker: str) -> Path:
    """Return the file that tells by which signal a worker was killed."""
    return folder / f"{worker}.ended"


def main(scheduler: str, name: str, folder: str, cores: str, drain_after_s: str) -> int:
    """Run the workers of a job."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shared = Path(folder)
    # Site programs and libraries write beside the run's own temporary files, which are deleted with the run.
    os.environ["TMPDIR"] = folder
    choose_caches()
    keys = os.memfd_create("keys")
    os.pwrite(keys, (shared / "keys").read_bytes(), 0)

    def tell(worker: str, cause: str) -> None:
        with atomic_write(ended_file(shared, worker)) as temporary:
            temporary.write_text(cause)

    with TemporaryDirectory(prefix=f"{name}-", dir=folder) as own:
        pool = WorkerPool(
            int(cores),
            scheduler,
            keys,
            Path(own),
            prefix=name,
            idle_s=IDLE_S,
            gpus=[gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
            on_end=tell,
        )
        try:
            require_open_files(int(cores))
            require_address_space()
            while not pool.finished:
                if time.monotonic() - began > float(drain_after_s):
                    pool.drain()
                pool.tend()
                time.sleep(_LOOK_S)
        except UserError as error:
            print(for_terminal(str(error)))  # noqa: T201 (the output is read by the run)
            return 1
        finally:
            pool.close()
    print(LEFT_WORDS)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
