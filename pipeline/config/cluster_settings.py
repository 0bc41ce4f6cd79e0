"""Settings of the jobs that a run submits to the queueing system of a cluster."""

import math
import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from ...data_manifests.settings import Section

_NAME = r"^[\w.@:+/,=-]*$"


class ClusterSettings(Section):
    """Settings of the jobs that `--cluster` submits (docs/servers.md).

    They do not change results, are never saved with a run and never read from a model: name them with every call, in
    the file after `--config` or with `--set`.
    """

    jobs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Largest number of jobs in the queue at the same time."""
    cores: Annotated[int, Field(ge=1, le=256)] = 1
    """Cores of a job: it processes as many subjects at the same time."""
    memory_gb: Annotated[float, Field(ge=1, le=10_000)] = 4.0
    """Memory of a job, for all its subjects together; 4 GB for each core are plenty without HD-BET."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of a job, which its subjects share: with as many cores as GPUs, each has one of its own."""
    time: str = "4:00:00"
    """Time limit of a job, as hours:minutes:seconds. A job that ends is followed by another."""
    drain_minutes: Annotated[float, Field(gt=0)] = 15.0
    """Time before the end of a job at which it begins no more subjects. It has to be longer than a subject takes."""
    partition: Annotated[str, Field(pattern=_NAME)] = ""
    """Partition (SLURM) or queue (PBS, LSF, SGE); empty: the default one."""
    account: Annotated[str, Field(pattern=_NAME)] = ""
    """Account or project that is charged; empty: the default one."""
    directives: tuple[str, ...] = ()
    """Further options for the queueing system, as in `["--qos=long", "--constraint=avx2"]`."""
    prologue: tuple[str, ...] = ()
    """Lines of shell that a job executes first, as in `["module load cuda"]`."""
    interface: Annotated[str, Field(pattern=_NAME)] = ""
    """Network interface of this machine that the nodes reach, as in `ib0`; empty: that of the default route."""
    wait_minutes: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait in the queue for the first worker; then the run stops."""

    @field_validator("time")
    @classmethod
    def _hours(cls, value: str) -> str:
        if not re.fullmatch("[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]", value) or not value.strip("0:"):
            raise ValueError("hours:minutes:seconds, as in 4:00:00")
        return value

    @field_validator("directives", "prologue")
    @classmethod
    def _single_lines(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if any(not value.isprintable() or not value.strip() for value in values):
            raise ValueError("a list with one line of text for each item")
        return values

    @model_validator(mode="after")
    def _drains_in_time(self) -> Self:
        if self.drain_minutes * 60 >= self.seconds:
            raise ValueError(
                f"drain_minutes is {self.drain_minutes:g} and time is {self.time}, so that a job would begin no "
                "subject; expected a longer time, or fewer drain_minutes"
            )
        return self

    @property
    def seconds(self) -> int:
        """Time limit of a job."""
        hours, minutes, seconds = map(int, self.time.split(":"))
        return (hours * 60 + minutes) * 60 + seconds

    @property
    def drain_after_s(self) -> float:
        """Time after the start of a job at which it begins no more subjects."""
        return self.seconds - self.drain_minutes * 60

    @property
    def memory_mb(self) -> int:
        """Memory of a job."""
        return math.ceil(self.memory_gb * 1024)
