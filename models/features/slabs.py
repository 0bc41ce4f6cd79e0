"""Slabs of the voxels of a mask, processed one after the other, and their neighbours in the slabs next to them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from . import moment_kernels

_SLAB_NUMBERS = 16_000_000


@dataclass(frozen=True)
class Slab:
    """Planes ``x_low:x_high`` of the grid, which contain the voxels ``start:stop`` of the mask.

    Together with the planes next to it, it contains the voxels ``low:high``.
    """

    x_low: int
    x_high: int
    start: int
    stop: int
    low: int
    high: int

    @property
    def size(self) -> int:
        """Number of voxels, without those of the planes next to it."""
        return self.stop - self.start

    @property
    def inner(self) -> slice:
        """Place of the voxels ``start:stop`` among the voxels ``low:high``."""
        return slice(self.start - self.low, self.stop - self.low)


def slabs_of(mask: VoxelMask, numbers_per_voxel: int) -> list[Slab]:
    """Divide the voxels of a mask into slabs of few enough numbers, of at least one plane each."""
    x = mask.locations[:, 0]
    per_plane = len(x) / (int(x[-1]) - int(x[0]) + 1) * numbers_per_voxel
    thickness = max(1, int(_SLAB_NUMBERS / per_plane))
    slabs = []
    for x_low in range(int(x[0]), int(x[-1]) + 1, thickness):
        x_high = x_low + thickness
        start, stop, low, high = (int(v) for v in np.searchsorted(x, [x_low, x_high, x_low - 1, x_high + 1]))
        if stop > start:
            slabs.append(Slab(x_low, x_high, start, stop, low, high))
    return slabs


class OfSlab(Protocol):
    """What belongs to a slab."""

    @property
    def slab(self) -> Slab:
        """The slab."""
        ...


_Part = TypeVar("_Part", bound=OfSlab)


def with_neighbours(parts: Iterable[_Part]) -> Iterator[tuple[_Part, list[_Part]]]:
    """Yield each part, and the same with the one before and the one after it."""
    window: list[_Part] = []
    own: _Part | None = None
    for after in chain(parts, [None]):
        window = [*window[-2:], *([after] if after is not None else [])]
        if own is not None:
            yield own, window
        own = after


def joined(slab: Slab, parts: Sequence[_Part], values: Callable[[_Part], np.ndarray]) -> np.ndarray:
    """Join the values (n, ...) of successive parts at the voxels ``slab.low:slab.high``."""
    pieces = []
    for part in parts:
        first = part.slab.start
        pieces.append(values(part)[max(slab.low - first, 0) : max(slab.high - first, 0)])
    return np.concatenate(pieces)


def sum_over_neighbours(values: np.ndarray, voxels: np.ndarray, inner: slice = slice(None)) -> np.ndarray:
    """Sum values over the 3x3x3 neighbourhood of each voxel, including the voxel itself.

    Parameters
    ----------
    values : ndarray, (n, k), float32
    voxels : ndarray of int, (n, 3)
        Voxel indices; other voxels count as 0.
    inner : slice
        Voxels for which the sums are returned; all by default.

    Returns
    -------
    ndarray, (n or fewer, k), float32
    """
    # A box with a border of one voxel.
    low = voxels.min(axis=0) - 1
    shape = tuple(int(size) for size in voxels.max(axis=0) - low + 2)
    index = np.asarray(np.ravel_multi_index(tuple((voxels - low).T), shape))
    out = np.empty((len(index[inner]), values.shape[1]), np.float32)
    moment_kernels.sum_over_neighbours(values, index, index[inner], np.array(shape), out)
    return out
