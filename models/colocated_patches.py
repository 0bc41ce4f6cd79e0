"""Batches of patches, cut from whole volumes on the device.

A batch is a pure function of (seed, step): a run that was killed and goes on draws what it would have drawn, on any
device. Two kinds: patches from anywhere, and patches of many subjects at the same locations.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..preprocessing.patch_store import PatchStore
from .windows import Patches, Window

MIXED, COLOCATED, WATCH, SETTLE = range(4)
"""Streams of random numbers that never meet."""


def volumes_on(store: PatchStore, device: torch.device | str) -> torch.Tensor:
    """The store's volumes as a tensor (S, C, X, Y, Z), float16; on the CPU still mapped from disk."""
    return torch.from_numpy(store.volumes).to(device)


@dataclass(frozen=True, eq=False)
class MixedPatches:
    """Batches of any subjects at any locations.

    Attributes
    ----------
    volumes : tensor, (S, C, X, Y, Z)
    rows : ndarray of int64
        The subjects to draw from.
    locations : ndarray of int, (P, 3)
    windows : tuple of Window
    size : int
        Patches a batch.
    seed : int
    stream : int
    """

    volumes: torch.Tensor
    rows: np.ndarray
    locations: np.ndarray
    windows: tuple[Window, ...]
    size: int
    seed: int
    stream: int = MIXED

    def batch(self, step: int) -> Patches:
        """Patches (size, C, p, p[, p]) of one step, one tensor a window."""
        random = np.random.default_rng((self.seed, self.stream, step))
        rows = random.choice(self.rows, self.size)
        centres = self.locations[random.integers(len(self.locations), size=self.size)]
        return _cut(self.volumes, rows, centres, self.windows)


@dataclass(frozen=True, eq=False)
class ColocatedPatches:
    """Batches of several subjects at the same locations.

    Attributes
    ----------
    volumes, rows, locations, windows, seed, stream
        As in `MixedPatches`.
    n_locations : int
        Locations a batch (B), drawn without repeats while there are enough.
    n_subjects : int
        Subjects a location (n), at most ``len(rows)``. Drawn, and put in random order, for each location anew: any cut
        through the axis of subjects is a random split.
    """

    volumes: torch.Tensor
    rows: np.ndarray
    locations: np.ndarray
    windows: tuple[Window, ...]
    n_locations: int
    n_subjects: int
    seed: int
    stream: int = COLOCATED

    def batch(self, step: int) -> Patches:
        """Patches (B, n, C, p, p[, p]) of one step, one tensor a window."""
        random = np.random.default_rng((self.seed, self.stream, step))
        repeats = self.n_locations > len(self.locations)
        chosen = self.locations[random.choice(len(self.locations), self.n_locations, replace=repeats)]
        order = random.permuted(np.tile(self.rows, (self.n_locations, 1)), axis=1)[:, : self.n_subjects]
        centres = np.repeat(chosen, self.n_subjects, axis=0)
        patches = _cut(self.volumes, order.ravel(), centres, self.windows)
        return tuple(patch.unflatten(0, (self.n_locations, self.n_subjects)) for patch in patches)


def _cut(volumes: torch.Tensor, rows: np.ndarray, centres: np.ndarray, windows: tuple[Window, ...]) -> Patches:
    device = volumes.device
    rows_there = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
    centres_there = torch.from_numpy(np.asarray(centres, dtype=np.int64)).to(device)
    return tuple(window.cut(volumes, rows_there, centres_there) for window in windows)
