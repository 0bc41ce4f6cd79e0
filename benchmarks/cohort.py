"""A cohort through all that goes wrong on a server, and what the machinery around the subjects costs.

    python -m benchmarks.cohort --out DIR [--parts engine deaths moments limit scaling] [--subjects 40] [--heads 24]

`DIR` is a new folder. Each part prints a Markdown table:

- **deaths**: small synthetic subjects; the site's own brain extraction refuses one of them, kills the worker that
  called it by SIGSEGV at another and by SIGKILL at a third, each once; the command is killed halfway and given again.
  The good subjects have to be as in a run in which nothing died, and the refused one has to be named. With workers on
  this machine and, where SLURM is installed and this user is root, in jobs of a SLURM that is started here.
- **moments**: the command, its workers, the disk and the network, each disturbed at 20 random moments (see `moments`).
- **limit**: calls of 8 s in jobs of SLURM that may run for 60 s; each has to be begun once.
- **engine**: start, a call that does nothing, three stages of 1,000 subjects that do nothing, `voxout status` of them.
- **scaling**: prepare and map of whole heads (2 mm) with one and with two jobs, and time, memory and disk space as
  foretold by `--dry-run`. Other programs on the machine falsify these times.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.synthetic.phantoms import make_cohort, small_cohort
from voxout.pipeline.exit_codes import SOME_FAILED
from voxout.pipeline.run import RunOptions, run_pipeline
from voxout.pipeline.tools.machine_speed import slowness
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.origin import Origin
from voxout.pipeline.workflow.ownership import claim
from voxout.pipeline.workflow.per_subject import cached, work_by_subject
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.runner import Run, Stage, StageResult

from tests.pipeline.cluster.local_slurm import is_possible, local_slurm

from .job_limit import job_limit
from .kills import SETTINGS, Command
from .kills import Run as Started
from .moments import in_own_namespaces
from .plan import compared
from .same_results import compare

CLUSTER = """
cluster: {jobs: 1, cores: 2, memory_gb: 4, time: "1:00:00", drain_minutes: 1}
"""
PROGRAM = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
import nibabel, numpy, psutil

image, place = nibabel.load(sys.argv[1]), Path(sys.argv[3])
voxels = image.get_fdata(dtype="float32")
scan = hashlib.sha256(numpy.sort(voxels, axis=None).tobytes()).hexdigest()
with open(place / "calls.txt", "a") as calls:
    calls.write(scan + "\\n")
fault = json.loads((place / "faults.json").read_text()).get(scan)
if fault == "refused":
    sys.exit("no brain in this scan")
died = place / f"{scan}.died"
if fault and not died.exists():
    died.touch()
    os.kill(psutil.Process(os.getppid()).ppid(), signal.Signals[fault])  # our parent is the guardian of programs
    time.sleep(600)
nibabel.save(nibabel.Nifti1Image((voxels > 0).astype("uint8"), image.affine), sys.argv[2])
"""
REFUSED, SUBJECTS, CALLS = 3, 1000, 1000
JOBS = 2
NO_OP_STAGES = ("prepare", "map", "report")


@dataclass(frozen=True)
class Disturbed:
    """A cohort, and what happens to which of its subjects.

    Attributes
    ----------
    cohort : Path
    scans : dict from the hash of a scan to the key of its subject
    faults : dict from the hash of a scan to "refused" or the name of a signal
    folder : Path
    """

    cohort: Path
    scans: Mapping[str, str]
    faults: Mapping[str, str]
    folder: Path

    @classmethod
    def make(cls, folder: Path, subjects: int) -> "Disturbed":
        """Write the cohort, without the masks, which would be taken in place of those of the program."""
        patients, held_out = subjects // 8, subjects // 8
        cohort = small_cohort(
            folder / "cohort", controls=subjects - patients - held_out, held_out=held_out, patients=patients, seed=5
        )
        records = tuple(replace(record, brain_mask=None) for record in read_manifest(cohort))
        write_manifest(cohort, Manifest(records))
        scans = {_hash(record.images["t1w"]): record.key for record in records}
        # Early ones, so that they come before the command is killed.
        faults = dict(zip(list(scans)[1:6:2], ("SIGSEGV", "refused", "SIGKILL"), strict=True))
        return cls(cohort, scans, faults, folder)

    @property
    def refused(self) -> str:
        """Key of the subject that fails."""
        return next(self.scans[scan] for scan, fault in self.faults.items() if fault == "refused")

    def start(self, place: Path, cluster: str) -> Started:
        """Start a run in ``place/run``, or give it again."""
        settings, program = place / "settings.yaml", place / "program.py"
        program.write_text(PROGRAM)
        settings.write_text(
            SETTINGS.replace("COMMAND", f"{sys.executable} {program} {{image}} {{mask}} {place}") + CLUSTER
        )
        words = ["run", str(self.cohort), "run", "--config", str(settings), "--device", "cpu", "--jobs", str(JOBS)]
        words += ["--set", "models.ensemble.scorers=[intensity,prototypes]", "--cluster", cluster]
        return Started(Command(tuple(words), "run"), place)

    def place(self, name: str, faults: Mapping[str, str]) -> Path:
        """Return a new folder for a run with some of the faults."""
        place = self.folder / name
        place.mkdir()
        (place / "faults.json").write_text(json.dumps(dict(faults)))
        (place / "calls.txt").touch()
        return place

    def calls(self, place: Path) -> Counter[str]:
        """How often the brain of each subject was extracted."""
        return Counter(self.scans[scan] for scan in (place / "calls.txt").read_text().split())


def _hash(scan: Path) -> str:
    voxels = nib.Nifti1Image.from_filename(scan).get_fdata(dtype=np.float32)
    return hashlib.sha256(np.sort(voxels, axis=None).tobytes()).hexdigest()


def deaths(folder: Path, subjects: int) -> bool:
    """Print what became of the disturbed runs; return whether all is as it should be."""
    disturbed = Disturbed.make(folder, subjects)
    whole = disturbed.place("whole", {s: fault for s, fault in disturbed.faults.items() if fault == "refused"})
    began, run = time.monotonic(), disturbed.start(whole, "local")
    if run.process.wait() != SOME_FAILED:
        print(run.words)
        return False
    print(f"{subjects} subjects. Without deaths: {time.monotonic() - began:.0f} s.\n")
    print("| workers | good subjects | brains extracted once, again | failed | as without deaths | s | faults |")
    print("|---" * 7 + "|", flush=True)
    good = _killed_halfway(disturbed, whole, "local")
    if not is_possible():
        print("| slurm | not installed here |" + " |" * 5)
        return good
    with _slurm():
        return _killed_halfway(disturbed, whole, "slurm") and good


@contextmanager
def _slurm() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, local_slurm(Path(folder)) as conf:
        os.environ["SLURM_CONF"] = str(conf)
        try:
            yield
        finally:
            del os.environ["SLURM_CONF"]


def limit(folder: Path) -> bool:
    """Print what became of calls in jobs with a time limit; return whether all is as it should be."""
    if not is_possible():
        print("SLURM is not installed here.")
        return True
    with _slurm():
        return job_limit(folder / "limit")


def _killed_halfway(disturbed: Disturbed, whole: Path, cluster: str) -> bool:
    """Print the row of a run with all faults whose command is killed halfway and given again."""
    place, began, faults = disturbed.place(cluster, disturbed.faults), time.monotonic(), list[str]()
    run = disturbed.start(place, cluster)
    while run.goes_on and len(disturbed.calls(place)) < len(disturbed.scans) // 2:
        time.sleep(0.1)
    if not run.goes_on:
        faults.append("ended before it was killed")
    run.process.kill()
    run.process.wait()
    run = disturbed.start(place, cluster)
    code = run.process.wait()
    seconds = time.monotonic() - began
    faults += [f"exit code {code}"] if code != SOME_FAILED else []
    faults += ["a traceback"] if "Traceback" in run.words else []
    with (place / "run" / "failures.csv").open(newline="") as file:
        failed = [row["subject"] for row in csv.DictReader(file)]
    faults += ["others failed"] if failed != [disturbed.refused] else []
    calls = disturbed.calls(place)
    good = set(disturbed.scans.values()) - {disturbed.refused}
    again = sum(calls[key] > 1 for key in good)
    faults += [f"never extracted: {key}" for key in sorted(good - set(calls))]
    # The two at which a worker died, and those that the killed command was at.
    faults += ["more were repeated than were disturbed"] if again > 2 + JOBS else []
    record = StageRecord.read(OutputFolder(place / "run").record("prepare"))
    done = set(record.done) & good if record else set()
    faults += ["good subjects are missing"] if done != good else []
    rows, same = compare(whole / "run", place / "run")
    faults += [] if same else ["results differ", *rows]
    print(
        f"| {cluster} | {len(done)} of {len(good)} | {sum(calls[key] == 1 for key in good)}, {again} | "
        f"{', '.join(failed)} | {'to the bit' if same else 'no'} | {seconds:.0f} | {'; '.join(faults) or 'none'} |",
        flush=True,
    )
    return not faults


def engine(folder: Path) -> bool:
    """Print what the engine costs; return whether that is within the limits."""
    subjects = [SubjectRecord(f"{i:04d}", "patient", {"t1w": Path("none.nii.gz")}) for i in range(SUBJECTS)]
    began = time.monotonic()
    with Engine(JOBS) as started:
        started.map(_nothing, [(subjects[0],)], stage="prepare")
        start_s, began = time.monotonic() - began, time.monotonic()
        started.map(_nothing, [(subject,) for subject in subjects[:CALLS]], stage="prepare")
        call_ms = 1000 * (time.monotonic() - began) / CALLS
    out = folder / "no-op"
    claim(out)
    options = RunOptions(
        cohort=None, manifest=Manifest(tuple(subjects)), out=out, stages=NO_OP_STAGES, device="cpu", jobs=JOBS
    )
    began, cpu_s = time.monotonic(), _cpu_s()
    run_pipeline(options, lambda: Console(verbosity=-1), {name: _no_op_stage(name) for name in NO_OP_STAGES})
    stages_s, cpu_s, began = time.monotonic() - began, _cpu_s() - cpu_s, time.monotonic()
    told = subprocess.run(
        [sys.executable, "-m", "voxout.pipeline.cli", "status", str(out)], capture_output=True, text=True, check=True
    ).stdout
    status_s = time.monotonic() - began
    missing = [name for name in NO_OP_STAGES if f"{name}: {SUBJECTS} done of {SUBJECTS}" not in told]
    rows = [
        ("start, with the first call", start_s, 5, "s"),
        ("a call that does nothing", call_ms, 10, "ms"),
        (f"{SUBJECTS} subjects, 3 stages that do nothing ({cpu_s:.0f} s of CPU time)", stages_s, 60, "s"),
        ("`voxout status` of them", status_s, 2, "s"),
    ]
    print("| engine, two jobs | measured | at most |\n|---|---|---|")
    for what, measured, limit, unit in rows:
        print(f"| {what} | {measured:.2g} {unit} | {limit} {unit} |")
    if missing:
        print(f"\nNot all subjects are done: {told}")
    return not missing and all(measured <= limit for _, measured, limit, _ in rows)


def _cpu_s() -> float:
    """CPU time of this process and of those that it started, as far as they have ended."""
    return sum(os.times()[:4])


def _nothing(subject: SubjectRecord) -> None:
    pass


def _no_op_stage(name: str) -> Stage:
    paths = {"prepare": OutputFolder.subject_record, "map": OutputFolder.map_record, "report": OutputFolder.page_record}

    def no_op(subject: SubjectRecord, inputs: Mapping[str, Any], origin: Origin, out: OutputFolder) -> StageRecord:
        return cached(name, subject, paths[name](out, subject), inputs, out, (), lambda out: (), origin=origin)

    def work(run: Run) -> StageResult:
        inputs: dict[str, dict[str, Any]] = {subject.key: {} for subject in run.manifest}
        return work_by_subject(run, name, no_op, inputs, lambda subject: paths[name](run.out, subject), run.out)

    return Stage(name, lambda run: {}, work)


def scaling(folder: Path, heads: int) -> bool:
    """Print the times of one and of two jobs, and the plan of the latter; these have no verdict."""
    mapped = heads // 4
    cohort = make_cohort(
        folder / "heads", controls=heads - 2 * mapped, held_out=mapped, patients=mapped, spacing_mm=2.0, seed=7
    )
    seconds: dict[int, dict[str, float]] = {}
    for jobs in (1, JOBS):
        out = folder / f"jobs-{jobs}"
        command = ["run", str(cohort), str(out), "--preset", "fast", "--device", "cpu", "--jobs", str(jobs), "--quiet"]
        subprocess.run([sys.executable, "-m", "voxout.pipeline.cli", *command], check=True)
        records = {name: StageRecord.read(OutputFolder(out).record(name)) for name in ("prepare", "map")}
        seconds[jobs] = {name: record.wall_s for name, record in records.items() if record is not None}
    print(f"{heads} heads, {2 * mapped} of them mapped; load of the machine now: {os.getloadavg()[0]:.1f}.\n")
    print("| stage | one job, s | two jobs, s | times as fast | wanted |\n|---|---|---|---|---|")
    for name, alone in seconds[1].items():
        print(f"| {name} | {alone:.0f} | {seconds[JOBS][name]:.0f} | {alone / seconds[JOBS][name]:.2f} | 1.8 |")
    print(f"\nForetold and measured, {compared(OutputFolder(folder / f'jobs-{JOBS}'), JOBS, slowness(), 8.0)}")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--parts", nargs="+", choices=("engine", "deaths", "moments", "limit", "scaling"))
    parser.add_argument("--subjects", type=int, default=40, help="of the part deaths; at least 16")
    parser.add_argument("--times", type=int, default=20, help="of the part moments; for each disturbance")
    parser.add_argument("--heads", type=int, default=24, help="of the part scaling; at least 12")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    folder.mkdir(parents=True)
    parts = {
        "engine": lambda: engine(folder),
        "deaths": lambda: deaths(folder, options.subjects),
        "moments": lambda: in_own_namespaces(folder / "moments", options.times),
        "limit": lambda: limit(folder),
        "scaling": lambda: scaling(folder, options.heads),
    }
    good = True
    for name, part in parts.items():
        if options.parts is None or name in options.parts:
            print(f"\n## {name}\n", flush=True)
            good = part() and good
    print(f"\n{'All as it should be.' if good else 'NOT all as it should be.'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
