"""`voxout run --requeue`: a script for SLURM that submits itself again until the run is done."""

import argparse
import os
import shlex
import sys

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.user_paths import real
from ..cluster.queue_systems import Queue
from ..config.config import read_settings
from ..workflow.ownership import claim, write_own
from ..workflow.standard_streams import write_line

_WARNING_S = 120
"""Time before the limit at which SLURM signals the script; the signal may come a minute earlier."""
_ROUNDS = 50
_LINES = """\
cd {folder} || exit 1
round=${{VOXOUT_ROUND:-1}}
{command} &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
code=$?
# A signal ends the first wait; the second one waits for the run itself.
if [ "$code" -gt 128 ]; then wait "$run"; code=$?; fi
# Again only after the time limit, not after scancel or an error.
if [ "$code" -eq 143 ] && [ "$SECONDS" -ge {late_s} ]; then
    if [ "$round" -ge {rounds} ]; then
        echo "voxout: not done after {rounds} jobs, so no other was submitted. Look at voxout status." >&2
    else
        VOXOUT_ROUND=$((round + 1)) sbatch {script}
    fi
fi
exit "$code"
"""


def write_script(options: argparse.Namespace) -> None:
    """Write ``OUT/requeue.sbatch`` and print how to submit it.

    The job has the cores, memory, GPUs and time of the settings `cluster`. When it reaches its time limit, the run
    stops as after Ctrl-C, and the next job goes on with it.

    Raises
    ------
    UserError
        A setting cannot be used, or this machine has no SLURM.
    """
    given = read_settings(options.config, preset=options.preset, overrides=options.set, seed=options.seed)
    queue = Queue("slurm", given.cluster)
    out = OutputFolder(real(options.out))
    words = [word for word in options.words if word != "--requeue"]
    warning_s = min(_WARNING_S, given.cluster.seconds // 4)
    text = _LINES.format(
        folder=shlex.quote(os.getcwd()),
        command=shlex.join([sys.executable, "-m", "voxout.pipeline.cli", *words]),
        late_s=max(0, given.cluster.seconds - warning_s - 90),
        rounds=_ROUNDS,
        script=shlex.quote(str(out.requeue_script)),
    )
    claim(out.root)
    write_own(
        out, out.requeue_script, queue.script("voxout", [text], directives=[f"--signal=B:TERM@{warning_s}"]).encode()
    )
    write_line(f"sbatch {shlex.quote(str(out.requeue_script))}", sys.stdout)
