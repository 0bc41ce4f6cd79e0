"""Digits under every condition, computed once per run and shared by all processes."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from voxout.data_manifests.atomic_write import atomic_write

from .corruptions import CLEAN, corrupt
from .digits import EDGE, Digits

SEED = 0
"""Seed of the corruptions, which are drawn once, as in MNIST-C."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Selected digits under every condition, memory-mapped.

    Attributes
    ----------
    rows : ndarray of int, (n,)
        Rows of the data set, ascending.
    labels : ndarray of int64, (n,)
    folder : Path
        ``<condition>.npy``: uint8, (n, 28, 28).
    """

    rows: np.ndarray
    labels: np.ndarray
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Conditions":
        return cls(np.load(folder / "rows.npy"), np.load(folder / "labels.npy"), folder)

    def images(self, condition: str, rows: np.ndarray) -> np.ndarray:
        """Images (len(rows), 28, 28), uint8, under one condition."""
        return np.load(self.folder / f"{condition}.npy", mmap_mode="r")[self._positions(rows)]

    def images_under(self, conditions: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Images under one condition per row."""
        out = np.empty((len(rows), EDGE, EDGE), np.uint8)
        names = np.array(conditions)
        for name in np.unique(names):
            out[names == name] = self.images(str(name), rows[names == name])
        return out

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        return self.labels[self._positions(rows)]

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.rows, rows)


def make_conditions(
    digits: Digits, rows: np.ndarray, folder: Path, *, progress: Callable[..., None] | None = None
) -> Path:
    """Corrupt the given rows of the digits, or take them from data that are already corrupted.

    Returns
    -------
    Path
        Folder for `Conditions.open`, reused by later runs on the same digits.
    """
    rows = np.unique(rows)
    key = hashlib.sha256(digits.fingerprint().encode() + rows.tobytes()).hexdigest()[:16]
    made = folder / key
    if (made / "labels.npy").is_file():
        return made
    for earlier in folder.glob("*/labels.npy"):
        # Conditions of other digits; the length of the folder name identifies them.
        if len(earlier.parent.name) == len(key) and (earlier.parent / "rows.npy").is_file():
            shutil.rmtree(earlier.parent)
    clean = np.asarray(digits.images[rows])
    for done, name in enumerate(digits.conditions, start=1):
        given = clean if name == CLEAN else digits.corrupted.get(name)
        images = clean if name == CLEAN else given[rows] if given is not None else corrupt(name, clean, rows, SEED)
        _save(made / f"{name}.npy", images)
        if progress is not None:
            progress(done, len(digits.conditions), name)
    _save(made / "rows.npy", rows)
    _save(made / "labels.npy", digits.labels[rows])  # written last: marks the folder as complete
    return made


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
