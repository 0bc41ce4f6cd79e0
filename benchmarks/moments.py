"""A run that is disturbed at random moments; each time the same command is given again.

    python -m benchmarks.moments DIR TIMES

is called by `benchmarks.cohort`, part ``moments``, in namespaces of its own, where the output folder has a small disk
that can be filled, and the loopback interface can be taken down without harm to other programs.

- **client**: SIGKILL of the command, which is given again;
- **worker**: SIGKILL of one of its workers, while the command goes on;
- **disk**: the disk of the output folder is full; the command has to end with one sentence that names the disk, unless
  it writes nothing more until there is room again;
- **network**: no packet arrives for 1 to 45 s; workers and command are disconnected after 30 s. The command has to go
  on, or to end with one sentence.

No subject may fail by any of these, and whenever the command has done all, its maps, and all its other results, have to
be those of a run that nothing disturbed, byte for byte.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.synthetic.phantoms import small_cohort
from voxout.pipeline.exit_codes import SOME_FAILED, USER_ERROR

from .kills import SETTINGS, Command, Run, different

KINDS = ("client", "worker", "disk", "network")
PROGRAM = """
import sys, time
import nibabel
time.sleep(1)
image = nibabel.load(sys.argv[1])
nibabel.save(nibabel.Nifti1Image((image.get_fdata() > 0).astype("uint8"), image.affine), sys.argv[2])
"""
DISK_MB = 400
CUT_S = (1.0, 45.0)
DISCONNECTED_S = 30.0
"""Time after which Dask closes a connection without answers."""
HANGS_S = 600.0


class Disturbed:
    """A run, again and again.

    Parameters
    ----------
    folder : Path
        A new one.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        cohort = small_cohort(folder / "cohort", controls=5, held_out=2, patients=1, seed=3)
        # Without the masks, which would be taken in place of those that the program finds.
        write_manifest(cohort, Manifest(tuple(replace(record, brain_mask=None) for record in read_manifest(cohort))))
        program, settings = folder / "program.py", folder / "settings.yaml"
        program.write_text(PROGRAM)
        settings.write_text(SETTINGS.replace("COMMAND", f"{sys.executable} {program} {{image}} {{mask}}"))
        options = ["--config", str(settings), "--device", "cpu", "--jobs", "2"]
        self._command = Command(("run", str(cohort), "out", *options), "out")
        self._whole, self._place = folder / "whole", folder / "disturbed"
        self._whole.mkdir()
        self._place.mkdir()
        self.finished = 0
        began, run = time.monotonic(), Run(self._command, self._whole)
        if run.process.wait() != 0:
            raise RuntimeError(run.words)
        self.whole_s = time.monotonic() - began
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", self._place], check=True)
        self.run = Run(self._command, self._place)

    def wait(self, seconds: float) -> list[str]:
        """Let the run work, and begin anew whenever it has done all; return what should not have been."""
        give_up, faults = time.monotonic() + seconds, []
        while self.run.wait(max(0.0, give_up - time.monotonic())):
            faults += self.taken_up()
        return faults

    def taken_up(self) -> list[str]:
        """Compare the results of a run that has done all and delete them; start the run again."""
        code = self.run.process.wait()
        faults = ["a traceback"] if "Traceback" in self.run.words else []
        if code == 0:
            self.finished += 1
            faults += different(self._place / "out", self._whole / "out")
            shutil.rmtree(self._place / "out")
        elif code == SOME_FAILED:
            faults.append((self.run.out / "failures.csv").read_text().strip())
        elif code != -signal.SIGKILL:
            faults.append(f"ended with {code}: {self.run.words.strip().splitlines()[-1]}")
        self.run = Run(self._command, self._place)
        return faults

    def ends_well(self) -> list[str]:
        """Let the run do what is left."""
        faults, finished = list[str](), self.finished
        while self.finished == finished and not faults:
            faults = self.taken_up() if self.run.wait(HANGS_S) else ["hangs"]
        self.run.process.kill()
        return faults

    def disturb(self, kind: str, chance: random.Random) -> tuple[str, list[str]]:
        """Disturb the run in one of the ways; return how it took it, and what should not have been."""
        return {"client": self._client, "worker": self._worker, "disk": self._disk, "network": self._network}[kind](
            chance
        )

    def _client(self, chance: random.Random) -> tuple[str, list[str]]:
        self.run.process.kill()
        self.run.process.wait()
        return "given again", self.taken_up()

    def _worker(self, chance: random.Random) -> tuple[str, list[str]]:
        worker = self.run.a_worker(chance)
        if worker is None:
            return "done before", []
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            return "done before", []
        return "went on", []

    def _disk(self, chance: random.Random) -> tuple[str, list[str]]:
        filler, give_up, ended = self._place / "filler", time.monotonic() + HANGS_S, False
        with filler.open("wb") as file:
            while not ended and time.monotonic() < give_up:
                _fill(self._place, file.fileno())  # again and again, since the run also deletes files
                ended = self.run.wait(0.1)
        filler.unlink()
        return self._end("no space left") if ended else ("hung", ["hung", *self._client(chance)[1]])

    def _network(self, chance: random.Random) -> tuple[str, list[str]]:
        seconds = chance.uniform(*CUT_S)
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        self.run.wait(seconds)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        if not self.run.wait(HANGS_S):
            return "hung", [f"hung after {seconds:.0f} s", *self._client(chance)[1]]
        took, faults = self._end("")
        return f"{took} after {'more' if seconds > DISCONNECTED_S else 'less'} than {DISCONNECTED_S:.0f} s", faults

    def _end(self, words: str) -> tuple[str, list[str]]:
        """Of a run that may have ended with one sentence; start it again."""
        if self.run.process.wait() != USER_ERROR:
            return "went on", self.taken_up()
        last = self.run.words.strip().splitlines()[-1]
        faults = [] if last.startswith("voxout: ") and words in last else [f"told: {last}"]
        faults += ["a traceback"] if "Traceback" in self.run.words else []
        self.run = Run(self._command, self._place)
        return "ended with one sentence", faults


def _fill(folder: Path, file: int) -> None:
    with suppress(OSError):
        while free := shutil.disk_usage(folder).free:
            os.posix_fallocate(file, os.fstat(file).st_size, free)


def in_own_namespaces(folder: Path, number: int) -> bool:
    """Call `moments` with mounts and a network of its own; where that is not allowed, say so."""
    unshare = ["unshare", "--map-root-user", "--mount", "--net"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        print("This machine does not allow namespaces (unshare).")
        return True
    command = [sys.executable, "-m", __name__, str(folder), str(number)]
    return subprocess.run([*unshare, *command], check=False).returncode == 0


def moments(folder: Path, number: int, seed: int = 0) -> bool:
    """Print how a run takes each disturbance, `number` times; return whether all is as it should be."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    disturbed, chance = Disturbed(folder), random.Random(seed)
    print(f"Undisturbed: {disturbed.whole_s:.0f} s. Seed {seed}.\n")
    print("| disturbed | times | how it went on | faults |\n|---|---|---|---|", flush=True)
    taken: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    faults: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind in chance.sample([*KINDS] * number, len(KINDS) * number):
        found = disturbed.wait(chance.uniform(0.3, disturbed.whole_s / 2))
        took, more = disturbed.disturb(kind, chance)
        taken[kind][took] += 1
        faults[kind] += found + more
        print(kind, took, "; ".join(found + more), file=sys.stderr, flush=True)
    last = disturbed.ends_well()
    for kind in KINDS:
        ways = ", ".join(f"{way} {times}" for way, times in taken[kind].most_common())
        print(f"| {kind} | {number} | {ways} | {'; '.join(faults[kind]) or 'none'} |")
    print(f"\n{disturbed.finished} times all was done; the last time: {'; '.join(last) or 'as undisturbed'}.")
    return not last and not any(faults.values())


if __name__ == "__main__":
    sys.exit(0 if moments(Path(sys.argv[1]), int(sys.argv[2])) else 1)
