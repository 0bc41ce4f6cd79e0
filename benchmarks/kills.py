"""Kill commands at random moments, look for what is left and what is lost, and give the same command again.

    python benchmarks/kills.py --rounds 3 --out DIR

A round is nine kills: SIGKILL, SIGTERM and SIGINT, sent to the client, to its process group and to one of its workers,
a random time after each other. The commands are `run`, `fit` and `report` under other settings, `apply`, `score` and
`compare` of map folders, `native` and `remove`; each is given again as often as a kill has ended it, and after the last
one all begins anew. The site's own brain extraction is a program that starts another one in a session of its own. What
has to hold:

- within 10 s, the client has ended, and so has every process that came of it; where one worker was killed, the command
  goes on, and all that came of that worker has ended;
- `.scratch` is gone with the run; after SIGKILL of the client, with the next one that ends otherwise;
- SIGTERM and SIGINT: exit code 143 or 130, and the terminal and the log say so; never a traceback;
- other people's files, which come at random moments to random folders in and around the outputs, stay as they are;
- once all commands have been done, the outputs are equal, byte for byte, to those that nothing disturbed.
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
from collections.abc import Callable, Container
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
  brain_extraction: {method: command, command: "COMMAND"}
models:
  encoder: {patch_size_mm: 12.0, latent_size: 8}
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
ATLAS = """
import sys
import nibabel
import numpy
import voxout.preprocessing.registration.template as template
mask = template.load_template(4.0).brain_mask
nibabel.save(nibabel.Nifti1Image(numpy.asarray(mask.voxels, "uint8"), mask.grid.affine), sys.argv[1])
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("client", "group", "worker")
MARK = "VOXOUT_KILLS"
"""A variable of the environment by which every process that came of a run is found."""
PATIENCE_S = 10.0
LONGEST_S = 15.0
"""Between two kills."""
LAST_WORD: "dict[Command, str]" = {}
"""First word of the last line of each command, undisturbed."""
RESULTS = {".gz", ".safetensors", ".csv", ".npz", ".npy"}


@dataclass(frozen=True)
class Command:
    """One command of the sequence.

    Attributes
    ----------
    words : tuple of str
        After ``voxout``. Relative paths are those of the folder that all commands write to.
    out : str
        Its output folder.
    """

    words: tuple[str, ...]
    out: str


class Run:
    """A command, started once.

    Parameters
    ----------
    command : Command
    place : Path
        The folder that all commands write to.
    """

    def __init__(self, command: Command, place: Path):
        self.command = command
        self.out = place / command.out
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._words = place.with_suffix(".txt")
        with self._words.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "voxout.pipeline.cli", *command.words],
                cwd=place,
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
    def has_said_all(self) -> bool:
        """Whether its last line is that of a command that nothing disturbed."""
        return bool(self.words) and self.words.splitlines()[-1].split()[0] == LAST_WORD[self.command]

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
            try:
                if worker is None:
                    return "done before", []
                below = set(worker.children(recursive=True))
                worker.send_signal(self.number)
            except psutil.NoSuchProcess:
                return "done before", []
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
        if code == -self.number and (not run.words or run.has_said_all):
            return []  # Python itself was starting or ending
        faults = [] if code == 128 + self.number else [f"expected exit code {128 + self.number}"]
        faults += [] if "interrupted" in run.words else ["not told"]
        log = run.out / "log.jsonl"
        # Before its first stage it has not opened the log; some commands have none.
        if _begun(run) and json.loads(log.read_text().splitlines()[-1])["message"] != "interrupted":
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


class Foreign:
    """Files of other people in and around the outputs.

    Parameters
    ----------
    place : Path
    """

    def __init__(self, place: Path):
        self._place = place
        self._content: dict[Path, str] = {}

    def plant(self, chance: random.Random) -> None:
        """One more file, in a folder that voxout has finished or that is nobody's yet."""
        folders = [self._place, self._place / "mine"]
        for out in (path.parent for path in self._place.glob("*/records")):
            # What has no record yet is refused, as it should be, where a result belongs.
            recorded = {Path(name).parts[0] for file in out.glob("records/*.json") for name in _outputs(file)}
            # A file too many in a model is refused as well: it might be one that changes it.
            recorded -= {"detectors", "encoder"}
            parts = [out / name for name in recorded | {"prepared", "maps"}]
            folders += [out, *(p for part in parts for p in (part, *part.rglob("*")) if p.is_dir())]
        name = chance.choice(["notes.txt", "zmap.nii.gz", "model.safetensors", "scores.json.bak", "sub-x.csv", "a/b/c"])
        path = chance.choice(folders) / f"{len(self._content)}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content := f"mine {chance.random()}")
        self._content[path] = content

    def __contains__(self, path: Path) -> bool:
        return path in self._content

    def __len__(self) -> int:
        return len(self._content)

    def lost(self) -> list[str]:
        """Those that are not as they were."""
        gone = [p for p, text in self._content.items() if not (p.is_file() and p.read_text() == text)]
        return [f"lost or changed: {path.relative_to(self._place)}" for path in gone]


def _outputs(record: Path) -> list[str]:
    with suppress(OSError, ValueError):
        return list(json.loads(record.read_text()).get("outputs", {}))
    return []


def _faults_of_end(run: Run) -> list[str]:
    """What should not have been of a command that has ended."""
    faults = ["a traceback"] if "Traceback" in run.words else []
    code = run.process.wait()
    # One that ended before it began to work has left what it found.
    if code != -signal.SIGKILL and (code == 0 or _begun(run)) and (run.out / ".scratch").exists():
        faults.append(".scratch is left")
    if code > 0 and code not in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        faults.append(f"ended by itself with {code}: {run.words.strip().splitlines()[-1]}")
    return faults


class Sequence:
    """All commands, one after the other, again and again.

    Parameters
    ----------
    commands : list of Command
    place, whole : Path
        Where they write; where lies what they wrote undisturbed.
    """

    def __init__(self, commands: list[Command], place: Path, whole: Path):
        self._commands, self._place, self._whole = commands, place, whole
        self.finished = self.planted = 0
        self._begin()

    def _begin(self) -> None:
        self._place.mkdir()
        self.foreign = Foreign(self._place)
        self.run = Run(self._commands[0], self._place)

    def go_on(self) -> list[str]:
        """Give the same command again if the last one was killed, the next one if it was done.

        Returns
        -------
        list of str
            What should not have been.
        """
        faults = _faults_of_end(self.run) + self.foreign.lost()
        number = self._commands.index(self.run.command) + (self.run.process.wait() == 0)
        if number < len(self._commands):
            self.run = Run(self._commands[number], self._place)
            return faults
        faults += different(self._place, self._whole, self.foreign)
        self.finished += 1
        self.planted += len(self.foreign)
        shutil.rmtree(self._place)
        self._begin()
        return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    # A shell starts what runs in the background deaf to Ctrl-C, and what that starts would be deaf as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = options.out.resolve()
    commands, chance, whole = _commands(out), random.Random(options.seed), out / "whole"
    whole.mkdir()
    print("| undisturbed | s |\n|---|---|")
    for command in commands:
        began = time.monotonic()
        run = Run(command, whole)
        if run.process.wait() != 0:
            print(run.words)
            return 1
        LAST_WORD[command] = run.words.splitlines()[-1].split()[0]
        print(f"| {command.words[0]} to {command.out} | {time.monotonic() - began:.0f} |", flush=True)
    print(
        f"\nSeed {options.seed}.\n\n| | signal | to | after, s | in | exit code, after | faults |\n" + "|---" * 7 + "|"
    )

    sequence, faulty = Sequence(commands, out / "killed", whole), 0
    kills = [Kill(*pair) for _ in range(options.rounds) for pair in chance.sample([*product(SIGNALS, TARGETS)], 9)]
    for number, kill in enumerate(kills, start=1):
        moment, began, faults = chance.uniform(0.3, LONGEST_S), time.monotonic(), []
        while sequence.run.wait(max(0.0, began + moment - time.monotonic())):  # done since the last kill
            faults += sequence.go_on()
        stage = _stage(sequence.run)
        sequence.foreign.plant(chance)
        took, more = kill.try_on(sequence.run, chance)
        faults += more + sequence.foreign.lost()
        if not sequence.run.goes_on:
            faults += sequence.go_on()
        faulty += bool(faults)
        row = kill.number.name, kill.target, f"{moment:.1f}", stage, took, "; ".join(faults) or "none"
        print(f"| {number} | " + " | ".join(row) + " |", flush=True)
    finished, last = sequence.finished, []
    while sequence.finished == finished and not last:
        sequence.run.process.wait()
        last += sequence.go_on()
    os.killpg(sequence.run.process.pid, signal.SIGKILL)
    print(f"\nThe last commands, to their end: {'; '.join(last) or 'no faults'}.")
    done = f"{sequence.finished} times all commands, {sequence.planted} foreign files"
    print(f"{len(kills)} kills, {done}: {faulty} with faults.")
    return 1 if faulty or last else 0


def _commands(folder: Path) -> list[Command]:
    cohort = small_cohort(folder / "cohort", controls=5, held_out=2, patients=1, seed=3)
    # Without the masks, which would be taken in place of those that the program finds.
    manifest = Manifest(tuple(replace(record, brain_mask=None) for record in read_manifest(cohort)))
    write_manifest(cohort, manifest)
    new = cohort.with_name("new.csv")
    write_manifest(new, Manifest(manifest.patients))
    program, settings, atlas = folder / "program.py", folder / "settings.yaml", folder / "atlas.nii.gz"
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program} {{image}} {{mask}}"
    settings.write_text(SETTINGS.replace("COMMAND", command))
    subprocess.run([sys.executable, "-c", ATLAS, atlas], check=True)
    for record in manifest:
        for kind, found in (("masks", record.lesion_mask), ("brains", f"{record.key}_desc-brain_mask.nii.gz")):
            (folder / kind).mkdir(exist_ok=True)
            path = found if kind == "masks" else next(cohort.parent.rglob(str(found)), None)
            if path is not None:
                shutil.copy(path, folder / kind / f"{record.key}_mask.nii.gz")
    own_program = ("--set", f"preprocessing.brain_extraction.command={command}")
    work, named = ("--device", "cpu", "--jobs", "2"), ("--config", str(settings))
    anybodys = "run/maps/{id}/anat/{id}_space-orig_desc-anomaly_zmap.nii.gz"
    maps = ("evaluate", "--maps", anybodys, "--masks", str(folder / "masks"), "--brain-masks", str(folder / "brains"))
    maps += ("--healthy", "sub-heldout*", "--jobs", "2", "--set", "evaluation.bootstrap_draws=50")
    # Wherever scans are prepared, the site's program is named anew: no folder of voxout's brings commands along.
    return [
        Command(("run", str(cohort), "run", *named, *work), "run"),
        Command(("fit", str(cohort), "run", *work, "--set", "models.detector.nu=0.4"), "run"),
        Command(("run", str(cohort), "run", *named, *work, "--set", "models.detector.nu=0.4"), "run"),
        Command(("apply", "run", str(new), "applied", *own_program, *work), "applied"),
        Command((*maps, "--out", "scores"), "scores"),
        Command((*maps, "--seed", "1", "--out", "other-scores"), "other-scores"),
        Command(("compare", "scores", "other-scores", "--out", "differences"), "differences"),
        Command(("native", "run", "sub-patient001", str(atlas), "native/atlas.nii.gz", "--labels"), "native"),
        Command(("remove", "run", "sub-heldout001"), "run"),
    ]


def _begun(run: Run) -> bool:
    return _stage(run) != run.command.words[0]


def _stage(run: Run) -> str:
    begun = [line.split()[1].rstrip(":") for line in run.words.splitlines() if line.startswith("[")]
    return f"{run.command.words[0]}, {begun[-1]}" if begun else run.command.words[0]


def different(out: Path, whole: Path, foreign: Container[Path] = ()) -> list[str]:
    """Whether the results of one folder differ, byte for byte, from those of another one, apart from foreign files."""
    found = {path.relative_to(out) for path in out.rglob("*") if path not in foreign}
    names = found | {path.relative_to(whole) for path in whole.rglob("*")}
    results = sorted(name for name in names if name.suffix in RESULTS and name.name != "status.csv")
    unequal = [name for name in results if not _equal(whole / name, out / name)]
    return [f"{len(unequal)} of {len(results)} results differ: {unequal[0]}"] if unequal else []


def _equal(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    sys.exit(main())
