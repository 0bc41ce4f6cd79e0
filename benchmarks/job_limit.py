"""Calls of 8 s in jobs of a real SLURM that may run for 60 s; called by `benchmarks.cohort`, part ``limit``."""

import time
from pathlib import Path

from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline.cluster.queue_cluster import QueueCluster
from voxout.pipeline.cluster.queue_systems import Queue
from voxout.pipeline.config.cluster_settings import ClusterSettings
from voxout.pipeline.workflow.engine import Engine

CALLS, CALL_S, JOBS = 14, 8.0, 2
JOB = "0:01:00"
DRAIN_MINUTES = 0.25


def job_limit(folder: Path) -> bool:
    """Print how often each call was begun; return whether that was once, and none failed. Needs SLURM_CONF."""

    def call(subject: SubjectRecord) -> str:
        import os
        import time

        with (folder / subject.key).open("a") as file:
            file.write("x")
        time.sleep(CALL_S)
        return os.environ["SLURM_JOB_ID"]

    folder.mkdir()
    subjects = [SubjectRecord(f"{number:02d}", "control", {}) for number in range(CALLS)]
    settings = ClusterSettings(jobs=JOBS, memory_gb=1, time=JOB, drain_minutes=DRAIN_MINUTES)
    began = time.monotonic()
    with Engine(1, start_cluster=lambda: QueueCluster(Queue("slurm", settings))) as engine:
        outcome = engine.map(call, [(subject,) for subject in subjects], stage="prepare")
    seconds = time.monotonic() - began
    begun = [len(file.read_text()) for file in folder.iterdir()]
    print(f"{CALLS} calls of {CALL_S:.0f} s, {JOBS} jobs of {JOB} at a time.\n")
    print("| done | begun once | failed | jobs | s |\n|---|---|---|---|---|")
    jobs = len(set(outcome.results.values()))
    print(f"| {len(outcome.results)} | {begun.count(1)} | {len(outcome.failures)} | {jobs} | {seconds:.0f} |")
    return len(outcome.results) == CALLS and begun == [1] * CALLS and jobs > JOBS
