"""Moments of slabs, kept on disk from the pass over the features that computes them to the one that uses them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from .moments import SlabMoments


class KeptSlabs:
    """Moments of the slabs of a brain, to be read again in the same order.

    Parameters
    ----------
    folder : Path or None
        They are in a temporary file without a name in this folder, deleted with this object; None: in memory.
    """

    def __init__(self, folder: Path | None):
        self._slabs: list[SlabMoments] = []
        self._file: IO[bytes] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed with this object)

    def keep(self, slabs: Iterable[SlabMoments]) -> Iterator[SlabMoments]:
        """Keep slabs, and yield them.

        Raises
        ------
        OSError
            Not enough space.
        """
        for slab in slabs:
            if self._file is not None:
                for array in _arrays(slab):
                    self._file.write(np.ascontiguousarray(array).data)
            self._slabs.append(slab if self._file is None else _without_values(slab))
            yield slab

    def __iter__(self) -> Iterator[SlabMoments]:
        """Yield the slabs that were kept."""
        if self._file is None:
            yield from self._slabs
            return
        self._file.seek(0)
        for kept in self._slabs:
            arrays = [np.empty(array.shape, array.dtype) for array in _arrays(kept)]
            for array in arrays:
                self._file.readinto(array.data)  # type: ignore[attr-defined]
            yield SlabMoments(kept.slab, *arrays)


def _arrays(slab: SlabMoments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return slab.slopes, slab.mean, slab.covariance


def _without_values(slab: SlabMoments) -> SlabMoments:
    """Shapes and types of the arrays, which take up no memory."""
    return SlabMoments(slab.slab, *(np.broadcast_to(np.zeros((), a.dtype), a.shape) for a in _arrays(slab)))
