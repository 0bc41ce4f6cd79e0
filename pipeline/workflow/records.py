"""Records of stages, by which a later run skips a stage or explains why it runs again.

A record lists all inputs of a result (settings, files, earlier records, each as a value or a hash) and every file that
the stage wrote. It is current while the inputs are the same and the files are complete.
"""

import functools
import hashlib
import json
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import Failure, kept
from ...data_manifests.open_file import file_hash
from ...data_manifests.terms import MODALITIES
from ...data_manifests.typed_json import load_json
from ..config.config import comparable

_PACKAGES = ("voxout", "torch", "monai", "antspyx", "SimpleITK", "nibabel", "numpy", "numba", "deepbet")
_SAMPLED_EVERY_S = 0.25
"""Interval between two measurements of the memory in use."""


@dataclass(frozen=True)
class StageRecord:
    """Record of a finished stage.

    Attributes
    ----------
    stage : str
    inputs : mapping
        All inputs of the result, by name. Flat; values are JSON values or hashes.
    outputs : mapping from relative path to size in bytes
    hashes : mapping from relative path to SHA-256
        Of the outputs that the stage built itself; records of version 0.1.0 have none.
    done : tuple of str
        Keys of the subjects that succeeded.
    failed : tuple of Failure
    wall_s, peak_memory_mb : float
        Memory is the resident memory of the process and its workers together.
    """

    stage: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, int]
    done: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    device: str = "cpu"
    started: str = ""
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """In the record of a subject's map: what the pages show of the subject (see `earlier_subjects`)."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Command, seed, settings, commit and kind of machine (see `Origin`); records of before have none."""

    @property
    def identity(self) -> str:
        """Hash that changes whenever the stage runs again; later stages depend on it."""
        return fingerprint([self.stage, self.started, dict(self.inputs), dict(self.outputs)])

    @property
    def comparable_inputs(self) -> dict[str, Any]:
        """Its inputs as far as they can be compared with those of today's stage (see `comparable`)."""
        return comparable(self.inputs)

    @property
    def scans(self) -> dict[str, str]:
        """Hashes of the scans that a map was computed from, by modality, as far as its record has them."""
        return {name: self.about[name] for name in MODALITIES if name in self.about}

    def is_complete(self, root: Path, under: str = "") -> bool:
        """Whether every file it wrote (below the folder `under`) still exists with the same size."""
        files = ((root / name, size) for name, size in self.outputs.items() if name.startswith(under))
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    def owns(self, root: Path, name: str) -> bool:
        """Whether the file of this name is the recorded one: a regular file of the same size and hash."""
        path = root / name
        if name not in self.outputs or path.is_symlink() or not path.is_file():
            return False
        if path.stat().st_size != self.outputs[name]:
            return False
        return name not in self.hashes or file_hash(path) == self.hashes[name]

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "StageRecord | None":
        """Read the record at a path; None if there is none or it cannot be read.

        A file that has not changed is read once per process.
        """
        try:
            state = path.stat()
            return _read(path, state.st_ino, state.st_size, state.st_mtime_ns)
        except (OSError, ValueError, TypeError, KeyError):
            return None


@functools.lru_cache(maxsize=65536)
def _read(path: Path, *_state: int) -> StageRecord:
    # The state of the file is a key of the cache only; records are replaced by new files, never changed.
    values = load_json(path)
    values["failed"] = tuple(Failure(**failure) for failure in values["failed"])
    values["done"], values["warnings"] = tuple(values["done"]), tuple(values["warnings"])
    return StageRecord(**values)


def fingerprint(value: Any) -> str:
    """Return the hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return the hash of a file's content; "missing" if there is no file."""
    try:
        state = path.stat()
        return _content_fingerprint(path, state.st_size, state.st_mtime_ns) if path.is_file() else "missing"
    except OSError:
        return "missing"


@functools.cache
def _content_fingerprint(path: Path, _size: int, _modified_ns: int) -> str:
    # Size and time are keys of the cache only.
    return file_hash(path)[:16]


@dataclass(frozen=True)
class Evidence:
    """Sizes and hashes of files, by their path relative to a root."""

    sizes: dict[str, int]
    hashes: dict[str, str]


def sizes(root: Path, paths: Sequence[Path]) -> dict[str, int]:
    """Return the sizes of files, and of all files in folders, by their path relative to the root."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    # Names that start with a dot are temporary files of a killed run, not outputs.
    complete = (file for file in files if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(root)): file.stat().st_size for file in complete}


def evidence(root: Path, paths: Sequence[Path]) -> Evidence:
    """Return sizes and hashes of files, and of all files in folders (see `sizes`)."""
    found = sizes(root, paths)
    return Evidence(found, {name: file_hash(root / name) for name in found})


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, without the private names in its strings."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(kept(values), indent=1))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


class Meter:
    """Wall time and peak memory of a block: ``with Meter() as meter: ...``.

    Memory is sampled for the process and its children together, since the operating system's own peak covers the
    whole life of the process.
    """

    def __init__(self):
        self.wall_s = 0.0
        self.peak_memory_mb = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> "Meter":
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.wall_s = time.monotonic() - self._started

    def _sample(self) -> None:
        while True:
            self.peak_memory_mb = max(self.peak_memory_mb, _tree_memory_mb())
            if self._stop.wait(_SAMPLED_EVERY_S):
                return


def _tree_memory_mb() -> float:
    total = 0
    process = psutil.Process()
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
