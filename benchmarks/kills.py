"""Kill runs at random moments, look for what is left, and give the same command again.

    python benchmarks/kills.py --rounds 3 --out DIR

A round is nine kills: SIGKILL, SIGTERM and SIGINT, sent to the client, to its process group and to one of its workers,
a random time after each other. The command is given again as often as a kill has ended it, so that one round goes about
once from the first stage to the last. The site's own brain extraction is a program that starts another one in a session
of its own. What has to hold:

- within 10 s, the client has ended, and so has every process that came of it; where one worker was killed, the run goes
  on, and all that came of that worker has ended;
- `.scratch` is gone with the run; after SIGKILL of the client, with the next one that ends otherwise;
- SIGTERM and SIGINT: exit code 143 or 130, and the terminal and the log say so; never a traceback;
- a run that comes to its end has outputs that are equal, byte for byte, to those of a run that nothing disturbed.
"""

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import psutil
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.synthetic.phantoms import small_cohort

SETTINGS = """
preprocessing:
  spacing_mm: 4.0
  bias_field: {working_spacing_mm: 8.0}
  registration: {transform: affine, working_spacing_mm: 4.0, smallest_similarity: 0.2}
  brain_extraction: {method: command, command: "PYTHON PROGRAM {image} {mask}"}
models:
  encoder: {patch_size_mm: 12.0, code_size: 8}
  training: {pretraining_steps: 40, guided_steps: 0, patches_per_step: 128, checkpoint_every: 20}
evaluation: {bootstrap_draws: 50}
"""
PROGRAM = """
import subprocess, sys, time
import nibabel
subprocess.Popen(["setsid", "sh", "-c", "sleep 600 & exit"])
time.sleep(1)
image = nibabel.load(sys.argv[1])
mask = (image.get_fdata() > 0).astype("uint8")
nibabel.save(nibabel.Nifti1Image(mask, image.affine), sys.argv[2])
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("client", "group", "worker")
MARK = "VOXOUT_KILLS"
"""A variable of the environment by which every process that came of a run is found."""
PATIENCE_S = 10.0
RESULTS = {".gz", ".safetensors", ".csv", ".npz", ".npy"}


class Run:
    """The command, started once.

    Parameters
    ----------
    command : sequence of str
    out : Path
        Its output folder.
    """

    def __init__(self, command: Sequence[str], out: Path):
        self.out = out
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._words = out.with_suffix(".txt")
        with self._words.open("w") as file:
            self.process = subprocess.Popen(
                [*command, str(out)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {MARK: self._mark, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    @property
    def words(self) -> str:
        """What it has told so far."""
        return self._words.read_text()

    @property
    def goes_on(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def processes(self) -> set[psutil.Process]:
        """All that came of it and live."""
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process)
        return found

    def a_worker(self, chance: random.Random) -> psutil.Process | None:
        """One of its worker processes, as soon as there is one; None if it ends without."""
        while self.goes_on:
            with suppress(psutil.Error):
                children = psutil.Process(self.process.pid).children()
                # Python's own helper is no worker.
                workers = [process for process in children if "resource_tracker" not in _command_line(process)]
                if workers:
                    return chance.choice(workers)
            time.sleep(0.05)
        return None


def _command_line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@dataclass(frozen=True)
class Kill:
    """One signal to one target."""

    number: signal.Signals
    target: str

    def try_on(self, run: Run, chance: random.Random) -> tuple[str, list[str]]:
        """Send it; how the run took it, and what should not have been."""
        began = time.monotonic()
        if self.target == "worker":
            worker = run.a_worker(chance)
            if worker is None:
                return "done before", []
            below = set(worker.children(recursive=True))
            worker.send_signal(self.number)
            with suppress(psutil.TimeoutExpired):
                worker.wait(1)
            # Ctrl-C is no business of the workers: the client ends them.
            lives = worker.is_running() and self.number == signal.SIGINT
            return "goes on", [] if lives else _left(lambda: {worker, *below} & run.processes(), began)
        if self.target == "group":
            os.killpg(run.process.pid, self.number)
        else:
            run.process.send_signal(self.number)
        faults = [] if run.wait(PATIENCE_S) else ["goes on"]
        took = time.monotonic() - began
        faults += _left(run.processes, began)
        code = run.process.wait()
        return f"{code}, {took:.1f} s", faults + (self._faults_of_words(run, code) if code else [])

    def _faults_of_words(self, run: Run, code: int) -> list[str]:
        if self.number == signal.SIGKILL:
            return [] if code == -self.number else [f"expected exit code {-self.number}"]
        faults = [] if code == 128 + self.number else [f"expected exit code {128 + self.number}"]
        faults += [] if "interrupted" in run.words else ["not told"]
        log = run.out / "log.jsonl"
        # Before its first stage it has not opened the log.
        if _stage(run.words) != "start" and json.loads(log.read_text().splitlines()[-1])["message"] != "interrupted":
            faults.append("not logged")
        return faults


def _left(processes: Callable[[], set[psutil.Process]], began: float) -> list[str]:
    """What lives on for longer than it may; it is ended."""
    while (left := processes()) and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.1)
    faults = [f"left: {_command_line(process)[:60]}" for process in left]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    return faults


def _faults_of_end(run: Run, whole: Path) -> list[str]:
    """What should not have been of a run that has ended; one that was done makes room for a new one."""
    faults = ["a traceback"] if "Traceback" in run.words else []
    code = run.process.wait()
    if code != -signal.SIGKILL and (run.out / ".scratch").exists():
        faults.append(".scratch is left")
    if code > 0 and code not in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        faults.append(f"ended by itself with {code}")
    if code == 0:
        faults += _different(run.out, whole)
        shutil.rmtree(run.out)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    command, chance = _command(options.out), random.Random(options.seed)
    whole, out, faulty = options.out / "whole", options.out / "killed", 0
    began = time.monotonic()
    undisturbed = Run(command, whole)
    if undisturbed.process.wait() != 0:
        print(undisturbed.words)
        return 1
    length = time.monotonic() - began
    print(f"A run that nothing disturbs takes {length:.0f} s. Seed {options.seed}.\n")
    print("| signal | to | after, s | in | exit code, after | faults |\n|---|---|---|---|---|---|", flush=True)
    kills = [Kill(*pair) for _ in range(options.rounds) for pair in chance.sample([*product(SIGNALS, TARGETS)], 9)]
    run = Run(command, out)
    for kill in kills:
        moment = chance.uniform(0.5, 2 * length / 9)
        if run.wait(moment):  # done since the last kill
            faulty += bool(faults := _faults_of_end(run, whole))
            print("".join(f"| | | | | done | {fault} |\n" for fault in faults), end="")
            run = Run(command, out)
            run.wait(moment)
        stage = _stage(run.words)
        took, faults = kill.try_on(run, chance)
        if not run.goes_on:
            faults += _faults_of_end(run, whole)
            run = Run(command, out)
        faulty += bool(faults)
        row = kill.number.name, kill.target, f"{moment:.1f}", stage, took, "; ".join(faults) or "none"
        print("| " + " | ".join(row) + " |", flush=True)
    run.process.wait()
    faults = _faults_of_end(run, whole)
    faulty += bool(faults)
    print(f"\nThe last run, to its end: {'; '.join(faults) or 'no faults'}.")
    print(f"{len(kills)} kills, {faulty} with faults.")
    return 1 if faulty else 0


def _command(folder: Path) -> list[str]:
    cohort = small_cohort(folder / "cohort", controls=5, held_out=2, patients=1, seed=3)
    # Without the masks, which would be taken in place of those that the program finds.
    write_manifest(cohort, Manifest(tuple(replace(record, brain_mask=None) for record in read_manifest(cohort))))
    program, settings = folder / "program.py", folder / "settings.yaml"
    program.write_text(PROGRAM)
    settings.write_text(SETTINGS.replace("PYTHON", sys.executable).replace("PROGRAM", str(program)))
    voxout = [sys.executable, "-m", "voxout.pipeline.cli", "run", "--config", str(settings), "--device", "cpu"]
    return [*voxout, "--jobs", "2", str(cohort)]


def _stage(words: str) -> str:
    begun = [line.split()[1].rstrip(":") for line in words.splitlines() if line.startswith("[")]
    return begun[-1] if begun else "start"


def _different(out: Path, whole: Path) -> list[str]:
    names = {path.relative_to(folder) for folder in (whole, out) for path in folder.rglob("*")}
    results = sorted(name for name in names if name.suffix in RESULTS)
    different = [name for name in results if not _equal(whole / name, out / name)]
    return [f"{len(different)} of {len(results)} results differ: {different[0]}"] if different else []


def _equal(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    sys.exit(main())
