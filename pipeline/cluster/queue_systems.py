"""Queueing systems: job scripts, submission, cancellation, and which jobs have not ended.

dask-jobqueue knows the directives and commands of each system. Submission itself is done here, since a refused
submission has to be told in the system's own words.
"""

import getpass
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from ..config.cluster_settings import ClusterSettings

_COMMAND_LIMIT_S = 60


@dataclass(frozen=True)
class _System:
    job: str
    """Class of dask-jobqueue."""
    submit: str
    listing: tuple[str, ...]
    """Command that lists the jobs of the user that have not ended, one per line, the id first; USER stands for him."""
    options: Callable[[ClusterSettings], dict[str, Any]]
    """Arguments of the class for partition, account, time and GPUs."""
    directives: Callable[[ClusterSettings], list[str]]
    """Directives that the class does not write."""
    discard: tuple[str, ...] = ("-o /dev/null",)
    """Directives by which the system keeps no output of a job."""


def _common(settings: ClusterSettings, account: str) -> dict[str, Any]:
    return {"queue": settings.partition or None, account: settings.account or None, "walltime": settings.time}


def _pbs_resources(settings: ClusterSettings) -> str:
    gpus = f":ngpus={settings.gpus}" if settings.gpus else ""
    return f"select=1:ncpus={settings.cores}{gpus}:mem={settings.memory_mb}mb"


_SYSTEMS = {
    "slurm": _System(
        "SLURMJob",
        "sbatch",
        ("squeue", "-h", "-u", "USER", "-o", "%i %T (%r)"),
        lambda s: _common(s, "account") | {"job_mem": f"{s.memory_mb}M"},
        lambda s: [f"--gres=gpu:{s.gpus}"] if s.gpus else [],
    ),
    "pbs": _System(
        "PBSJob",
        "qsub",
        ("qstat", "-u", "USER"),
        lambda s: _common(s, "account") | {"resource_spec": _pbs_resources(s)},
        lambda s: [],
        ("-j oe", "-o /dev/null"),
    ),
    "lsf": _System(
        "LSFJob",
        "bsub",
        ("bjobs", "-noheader", "-o", "jobid stat pend_reason"),
        # LSF counts hours and minutes.
        lambda s: _common(s, "project") | {"walltime": s.time.rpartition(":")[0], "mem": s.memory_mb * 2**20},
        lambda s: [f'-gpu "num={s.gpus}"'] if s.gpus else [],
    ),
    "sge": _System(
        "SGEJob",
        "qsub",
        ("qstat", "-u", "USER"),
        lambda s: _common(s, "project"),
        lambda s: [f"-l gpu={s.gpus}"] if s.gpus else [],
    ),
}
SYSTEMS = tuple(_SYSTEMS)
"""Names of the known queueing systems."""


class Queue:
    """A queueing system, and the jobs that are submitted to it.

    Parameters
    ----------
    name : str
        One of `SYSTEMS`.
    settings : ClusterSettings

    Raises
    ------
    UserError
        dask-jobqueue is not installed, this machine has no command for submission, or settings that the system does not
        know.
    """

    def __init__(self, name: str, settings: ClusterSettings):
        self.name, self.settings, self._system = name, settings, _SYSTEMS[name]
        if shutil.which(self._system.submit) is None:
            raise UserError(
                f"--cluster {name}: found no command {self._system.submit} on this machine, expected one of the nodes "
                "from which jobs are submitted. Log in there, or leave out --cluster."
            )
        if name == "sge" and settings.cores > 1 and not any("-pe" in line for line in settings.directives):
            raise UserError(
                f"--cluster sge: cluster.cores is {settings.cores} and cluster.directives names no parallel "
                'environment, expected one such as ["-pe smp 4"], which differs between sites. Add it, or set '
                "cluster.cores=1."
            )
        try:
            import dask_jobqueue  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--cluster {name}: the package dask-jobqueue is not installed, expected voxout with its extra "
                "cluster. Run `pip install '.[cluster]'` in your clone of voxout."
            ) from error

    def script(
        self, name: str, lines: Sequence[str], *, log: Path | None = None, directives: Sequence[str] = ()
    ) -> str:
        """Return the script of a job.

        Parameters
        ----------
        name : str
            Name of the job.
        lines : sequence of str
            What it executes after the prologue of the settings.
        log : Path, optional
            File for its output, also that of the prologue; None: where the system keeps it.
        directives : sequence of str
            Directives besides those of the settings.
        """
        job = self._job(name, [*directives, *(self._system.discard if log is not None else ())])
        first = [f"exec >{shlex.quote(str(log))} 2>&1"] if log is not None else []
        return "\n".join([job.shebang, job.job_header, *first, *self.settings.prologue, *lines, ""])

    def submit(self, name: str, lines: Sequence[str], log: Path) -> str:
        """Submit a job (see `script`) and return its id.

        Raises
        ------
        UserError
            The system refused it; the message has the system's own words.
        """
        command = shlex.split(self._job(name).submit_command)
        try:
            done = subprocess.run(
                command,
                input=self.script(name, lines, log=log),
                capture_output=True,
                text=True,
                timeout=_COMMAND_LIMIT_S,
                check=False,
            )
            found = re.search(r"\d+", done.stdout) if done.returncode == 0 else None
            words = done.stderr + done.stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            found, words = None, str(error)
        if found is None:
            raise UserError(
                f"--cluster {self.name}: {command[0]} refused a job: {private(_one_line(words), 'its words')}. Correct "
                "the settings of cluster (partition, account, time, memory_gb, cores, gpus, directives)."
            )
        return found[0]

    def unfinished(self) -> dict[str, str] | None:
        """Return the state of each job of the user that has not ended, by id; None if the system does not answer."""
        command = [getpass.getuser() if word == "USER" else word for word in self._system.listing]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        # Without jobs, some systems fail and say so.
        if done.returncode != 0 and not re.search(r"no (unfinished )?jobs?", done.stderr, re.IGNORECASE):
            return None
        found = (re.match(r"\s*(\d+)\S*\s*(.*)", line) for line in done.stdout.splitlines())
        return {match[1]: " ".join(match[2].split()) for match in found if match}

    def cancel(self, ids: Sequence[str], limit_s: float = _COMMAND_LIMIT_S) -> None:
        """Cancel jobs; those that have ended are left."""
        if not ids:
            return
        command = [*shlex.split(self._job("voxout").cancel_command), *ids]
        try:
            subprocess.run(command, capture_output=True, timeout=limit_s, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return

    def _job(self, name: str, directives: Sequence[str] = ()) -> Any:
        import dask_jobqueue.lsf
        import dask_jobqueue.pbs
        import dask_jobqueue.sge
        import dask_jobqueue.slurm

        settings = self.settings
        return getattr(getattr(dask_jobqueue, self.name), self._system.job)(
            "",
            name=name,
            job_name=name,
            cores=settings.cores,
            processes=1,
            memory=f"{settings.memory_mb}MiB",
            job_extra_directives=[*directives, *self._system.directives(settings), *settings.directives],
            **self._system.options(settings),
        )


def _one_line(words: str) -> str:
    return " ".join(words.split())[:300].rstrip(".") or "nothing was said"
