"""Kill runs at random moments, look for what is left, and give the same command again.

    python benchmarks/kills.py --rounds 3 --out DIR

A round is nine kills: SIGKILL, SIGTERM and SIGINT, sent to the client, to its process group and to one of its workers,
each a random time after the same command was given again, so that a run is killed on its way from one stage to the
next. The site's own brain extraction is a program that starts another one in a session of its own. What has to hold:

- after a kill, the client ends within 10 s, and so does every process that came of it (where one worker was killed, the
  run goes on, and this holds from its end);
- `.scratch` is gone; after SIGKILL of the client once the same command has been given again;
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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from voxout.data_manifests.manifest import read_manifest, write_manifest
from voxout.data_manifests.phantoms import small_cohort
from voxout.data_manifests.subject import Manifest

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

    def still_there(self) -> dict[int, str]:
        """The processes that came of it, by number."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """Its worker processes."""
        return [pid for pid, command in self.still_there().items() if "multiprocessing.spawn" in command]


@dataclass(frozen=True)
class Kill:
    """One signal to one target, and how the run took it."""

    number: signal.Signals
    target: str

    def send(self, run: Run, chance: random.Random) -> bool:
        """Whether there was anything to kill."""
        if run.process.poll() is not None:
            return False
        if self.target == "client":
            run.process.send_signal(self.number)
        elif self.target == "group":
            os.killpg(run.process.pid, self.number)
        else:
            while not (workers := run.workers()):
                if run.process.poll() is not None:
                    return False
                time.sleep(0.05)
            os.kill(chance.choice(workers), self.number)
        return True

    @property
    def ends_the_run(self) -> bool:
        return self.target != "worker"

    def faults(self, run: Run) -> tuple[str, list[str]]:
        """How the run ended, and what should not have been."""
        faults, began = [], time.monotonic()
        try:
            run.process.wait(PATIENCE_S if self.ends_the_run else 1800)
        except subprocess.TimeoutExpired:
            faults.append("goes on")
            run.process.kill()
        code, took = run.process.wait(), time.monotonic() - began
        if not self.ends_the_run:
            began = time.monotonic()
        while (left := run.still_there()) and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.1)
        faults += [f"left: {command[:60]}" for command in left.values()]
        for process in left:
            os.kill(process, signal.SIGKILL)
        if "Traceback" in run.words:
            faults.append("a traceback")
        faults += _faults_of_end(run, code)
        if self.ends_the_run and code != 0:
            expected = -9 if self.number == signal.SIGKILL else 128 + self.number
            faults += [f"expected exit code {expected}"] if code != expected else []
            if self.number != signal.SIGKILL:
                if "interrupted" not in run.words:
                    faults.append("not told")
                log = run.out / "log.jsonl"
                if log.is_file() and json.loads(log.read_text().splitlines()[-1])["message"] != "interrupted":
                    faults.append("not logged")
        elif code != 0:
            faults.append("a run with one worker killed should go on")
        return f"{code}, {took:.1f} s", faults


def _faults_of_end(run: Run, code: int) -> list[str]:
    return [".scratch is left"] if code != -signal.SIGKILL and (run.out / ".scratch").exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    command, chance = _command(options.out), random.Random(options.seed)
    began = time.monotonic()
    undisturbed = Run(command, options.out / "whole")
    if undisturbed.process.wait() != 0:
        print(undisturbed.words)
        return 1
    length = time.monotonic() - began
    print(f"A run that nothing disturbs takes {length:.0f} s. Seed {options.seed}.\n")
    print("| signal | to | after, s | in | exit code, after | faults |\n|---|---|---|---|---|---|", flush=True)
    whole, out, faulty = options.out / "whole", options.out / "killed", 0
    kills = [Kill(*pair) for _ in range(options.rounds) for pair in chance.sample([*product(SIGNALS, TARGETS)], 9)]
    for kill in kills:
        moment = chance.uniform(0.5, length / 3)
        run = Run(command, out)
        _wait(run, moment)
        stage = _stage(run.words)
        sent = kill.send(run, chance)
        ended, faults = kill.faults(run) if sent else ("done before", [])
        faults += _faults_of_results(run, whole)
        faulty += bool(faults)
        row = kill.number.name, kill.target, f"{moment:.1f}", stage, ended, "; ".join(faults) or "none"
        print("| " + " | ".join(row) + " |", flush=True)
    last = Run(command, out)
    last.process.wait()
    if faults := _faults_of_results(last, whole) + _faults_of_end(last, 0):
        faulty += 1
        print(f"\nthe last run: {'; '.join(faults)}")
    print(f"\n{len(kills)} kills, {faulty} with faults")
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


def _wait(run: Run, seconds: float) -> None:
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _stage(words: str) -> str:
    begun = [line.split()[1].rstrip(":") for line in words.splitlines() if line.startswith("[")]
    return begun[-1] if begun else "start"


def _faults_of_results(run: Run, whole: Path) -> list[str]:
    """Compare a run that came to its end; the next one starts anew."""
    if run.process.returncode != 0:
        return []
    names = {path.relative_to(folder) for folder in (whole, run.out) for path in folder.rglob("*")}
    results = sorted(name for name in names if name.suffix in RESULTS)
    different = [name for name in results if not _equal(whole / name, run.out / name)]
    shutil.rmtree(run.out)
    return [f"{len(different)} of {len(results)} results differ: {different[0]}"] if different else []


def _equal(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    sys.exit(main())
