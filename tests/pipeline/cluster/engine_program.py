"""Program that executes calls with an engine, for tests that send it signals: JOBS SECONDS CALLS [LIMIT_S]."""

import sys
from pathlib import Path

from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.pipeline.cluster import worker_pool
from voxout.pipeline.workflow.engine import Engine


def _sleeping(seconds):
    # Local, so that it is pickled by value: a worker cannot import this module.
    def sleep(subject):
        import time

        time.sleep(seconds)

    return sleep


def main(jobs: str, seconds: str, calls: str, limit_s: str = "60", scratch: str = "") -> int:
    """Run the calls and return an exit code as the command line does."""
    worker_pool.STILL_LIMIT_S = float(limit_s)
    subjects = [SubjectRecord(subject_id=f"{i:02d}", group="control", images={}) for i in range(int(calls))]
    try:
        with Engine(int(jobs), Path(scratch) if scratch else None) as engine:
            outcome = engine.map(
                _sleeping(float(seconds)),
                [(subject,) for subject in subjects],
                stage="prepare",
                progress=lambda *what: print(*what, flush=True),
                say=lambda text, **facts: print(text, facts, flush=True),
            )
    except UserError as error:
        print(for_terminal(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    print(f"{len(outcome.results)} done, {len(outcome.failures)} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
