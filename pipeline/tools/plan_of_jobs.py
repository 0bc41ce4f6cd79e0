"""How many subjects at a time the memory is enough for: that of a job on a cluster, or a part of this machine's."""

import math
from collections.abc import Sequence

from ...data_manifests.errors import counted
from ..config.cluster_settings import ClusterSettings
from ..config.config import Config
from .plan import Heads, StagePlan, plan_run


def jobs_within(memory_gb: float, heads: Heads, config: Config, stages: Sequence[str], jobs: int) -> tuple[int, float]:
    """Return how many subjects at a time keep a run within some memory, at most `jobs`, and what that needs in GB.

    One subject at a time is the least, even if it needs more.
    """
    while True:
        plans = plan_run(heads, config, jobs=jobs, cores=jobs)
        need = max((plan.memory_gb for plan in plans if plan.stage in stages), default=0.0)
        if need <= memory_gb or jobs == 1:
            return jobs, need
        jobs -= 1


def subjects_at_once(settings: ClusterSettings) -> int:
    """Return how many subjects all jobs work on at the same time."""
    return settings.jobs * settings.cores


def memory_line(stages: Sequence[StagePlan], settings: ClusterSettings) -> str:
    """Say how much memory a job of each stage needs."""
    needs = ", ".join(f"{stage.stage} {need:.1f} GB" for stage, need in _needs(stages, settings))
    at_once = counted(settings.cores, "subject")
    return f"memory of a job with {at_once} at once: {needs}; cluster.memory_gb is {settings.memory_gb:g}"


def memory_shortage(stages: Sequence[StagePlan], settings: ClusterSettings) -> str | None:
    """Return a warning if a job of some stage needs more memory than it will have; None if it does not."""
    stage, need = max(_needs(stages, settings), key=lambda each: each[1], default=(None, 0.0))
    if stage is None or need <= settings.memory_gb:
        return None
    fewer = math.floor(settings.memory_gb / stage.worker_gb)
    advice = f", or cluster.cores={fewer}" if fewer else ""
    return (
        f"a job of {stage.stage} needs about {need:.1f} GB of memory for {counted(settings.cores, 'subject')} at once, "
        f"and cluster.memory_gb is {settings.memory_gb:g}: the queueing system would kill it. Set "
        f"cluster.memory_gb={math.ceil(need)}{advice}"
    )


def unknown_workers(stages: Sequence[StagePlan]) -> str:
    """Say what is not known of the workers of a running scheduler, and what each of them needs."""
    most = max((stage.worker_gb for stage in stages), default=0.0)
    return (
        "how many workers the scheduler has, how fast they are and how much memory they have is not known here: for "
        f"the time with another number, give it as --jobs; a worker needs up to {most:.1f} GB"
    )


def _needs(stages: Sequence[StagePlan], settings: ClusterSettings) -> list[tuple[StagePlan, float]]:
    return [(stage, settings.cores * stage.worker_gb) for stage in stages if stage.worker_gb]
