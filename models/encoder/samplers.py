"""Batches of patches, cut from whole volumes on the device.

A batch is a pure function of (seed, step): a run that was killed and goes on draws what it would have drawn, on any
device. Two kinds: patches from anywhere, and patches of many subjects at the same locations.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ...preprocessing.patches.volume_store import VolumeStore
from .patch_shape import Patches, PatchShape

MIXED, COLOCATED, WATCH, SETTLE = range(4)
"""Streams of random numbers that never meet."""
_DRAWS = 100
"""How often patches are drawn again that do not lie in their subject's brain; after that, they stay as they are."""


def volumes_on(store: VolumeStore, device: torch.device | str) -> torch.Tensor:
    """The store's volumes as a tensor (S, C, X, Y, Z), float16; on the CPU still mapped from disk."""
    return torch.from_numpy(store.volumes).to(device)


@dataclass(frozen=True, eq=False)
class MixedPatches:
    """Batches of any subjects at any locations of their own brains.

    Attributes
    ----------
    volumes : tensor, (S, C, X, Y, Z)
    inside : ndarray of bool, (S, X, Y, Z)
        Where each subject has brain; may be memory-mapped.
    rows : ndarray of int64
        The subjects to draw from.
    locations : ndarray of int, (P, 3)
    patch_shapes : tuple of PatchShape
    size : int
        Patches a batch.
    seed : int
    stream : int
    """

    volumes: torch.Tensor
    inside: np.ndarray
    rows: np.ndarray
    locations: np.ndarray
    patch_shapes: tuple[PatchShape, ...]
    size: int
    seed: int
    stream: int = MIXED

    def batch(self, step: int) -> Patches:
        """Patches (size, C, p, p[, p]) of one step, one tensor a window."""
        random = np.random.default_rng((self.seed, self.stream, step))
        rows, centres = np.zeros(self.size, np.int64), np.zeros((self.size, 3), np.int64)
        outside = np.arange(self.size)
        for _ in range(_DRAWS):
            rows[outside] = random.choice(self.rows, len(outside))
            centres[outside] = self.locations[random.integers(len(self.locations), size=len(outside))]
            outside = outside[~self.inside[rows[outside], *centres[outside].T]]
            if not len(outside):
                break
        return _cut(self.volumes, rows, centres, self.patch_shapes)


@dataclass(frozen=True, eq=False)
class ColocatedPatches:
    """Batches of several subjects at the same locations.

    Attributes
    ----------
    volumes, inside, rows, windows, seed, stream
        As in `MixedPatches`.
    locations : ndarray of int, (P, 3)
        Those at which `n_subjects` of the rows have brain at least.
    n_locations : int
        Locations a batch (B), drawn without repeats while there are enough.
    n_subjects : int
        Subjects a location (n), of those with brain there. Drawn, and put in random order, for each location anew: any
        cut through the axis of subjects is a random split.
    """

    volumes: torch.Tensor
    inside: np.ndarray
    rows: np.ndarray
    locations: np.ndarray
    patch_shapes: tuple[PatchShape, ...]
    n_locations: int
    n_subjects: int
    seed: int
    stream: int = COLOCATED

    def batch(self, step: int) -> Patches:
        """Patches (B, n, C, p, p[, p]) of one step, one tensor a window."""
        random = np.random.default_rng((self.seed, self.stream, step))
        repeats = self.n_locations > len(self.locations)
        chosen = self.locations[random.choice(len(self.locations), self.n_locations, replace=repeats)]
        without = ~self.inside[self.rows[:, None], *chosen.T]  # (len(rows), B)
        order = np.argsort(random.random(without.shape) + without, axis=0)[: self.n_subjects].T
        centres = np.repeat(chosen, self.n_subjects, axis=0)
        patches = _cut(self.volumes, self.rows[order].ravel(), centres, self.patch_shapes)
        return tuple(patch.unflatten(0, (self.n_locations, self.n_subjects)) for patch in patches)


def controls_at_voxels(inside: np.ndarray, rows: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """How many of some subjects have brain at each location, (P,) int64."""
    count = np.zeros(len(locations), np.int64)
    for row in rows:
        count += inside[row][tuple(locations.T)]
    return count


def _cut(volumes: torch.Tensor, rows: np.ndarray, centres: np.ndarray, patch_shapes: tuple[PatchShape, ...]) -> Patches:
    device = volumes.device
    rows_there = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
    centres_there = torch.from_numpy(np.asarray(centres, dtype=np.int64)).to(device)
    return tuple(patch_shape.cut(volumes, rows_there, centres_there) for patch_shape in patch_shapes)
