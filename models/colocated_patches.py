"""Batches of patches, cut from whole volumes on the device.

A batch is a pure function of (seed, step): a run that was killed and goes on draws what it would have drawn, on any
device. Two kinds: patches from anywhere, and patches of many subjects at the same locations.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..preprocessing.patch_store import PatchStore

MIXED, COLOCATED, WATCH, SETTLE = range(4)
"""Streams of random numbers that never meet."""


def volumes_on(store: PatchStore, device: torch.device | str) -> torch.Tensor:
    """The store's volumes as a tensor (S, C, X, Y, Z), float16; on the CPU still mapped from disk."""
    return torch.from_numpy(store.volumes).to(device)


def gather_patches(volumes: torch.Tensor, rows: torch.Tensor, centres: torch.Tensor, size_vox: int) -> torch.Tensor:
    """Cut axial windows.

    Parameters
    ----------
    volumes : tensor, (S, C, X, Y, Z)
    rows : tensor of int64, (N,)
        Which subject each patch is of.
    centres : tensor of int64, (N, 3)
        Voxel indices of the central voxels.
    size_vox : int
        Odd edge length p.

    Returns
    -------
    tensor, (N, C, p, p), float32
        Axes are X and Y of the volume; what lies beyond the grid is 0, as the background is.
    """
    size_x, size_y = volumes.shape[2:4]
    offsets = torch.arange(size_vox, device=volumes.device) - size_vox // 2
    x, y = centres[:, 0, None] + offsets, centres[:, 1, None] + offsets
    inside = ((x >= 0) & (x < size_x))[:, :, None] & ((y >= 0) & (y < size_y))[:, None, :]
    x, y = x.clamp(0, size_x - 1)[:, :, None], y.clamp(0, size_y - 1)[:, None, :]
    patches = volumes[rows[:, None, None], :, x, y, centres[:, 2, None, None]]
    return patches.permute(0, 3, 1, 2).float() * inside[:, None]


@dataclass(frozen=True, eq=False)
class MixedPatches:
    """Batches of any subjects at any locations.

    Attributes
    ----------
    volumes : tensor, (S, C, X, Y, Z)
    rows : ndarray of int64
        The subjects to draw from.
    locations : ndarray of int, (P, 3)
    patch_size_vox : int
    size : int
        Patches a batch.
    seed : int
    stream : int
    """

    volumes: torch.Tensor
    rows: np.ndarray
    locations: np.ndarray
    patch_size_vox: int
    size: int
    seed: int
    stream: int = MIXED

    def batch(self, step: int) -> torch.Tensor:
        """Patches (size, C, p, p) of one step."""
        random = np.random.default_rng((self.seed, self.stream, step))
        rows = random.choice(self.rows, self.size)
        centres = self.locations[random.integers(len(self.locations), size=self.size)]
        return _cut(self.volumes, rows, centres, self.patch_size_vox)


@dataclass(frozen=True, eq=False)
class ColocatedPatches:
    """Batches of several subjects at the same locations.

    Attributes
    ----------
    volumes, rows, locations, patch_size_vox, seed, stream
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
    patch_size_vox: int
    n_locations: int
    n_subjects: int
    seed: int
    stream: int = COLOCATED

    def batch(self, step: int) -> torch.Tensor:
        """Patches (B, n, C, p, p) of one step."""
        random = np.random.default_rng((self.seed, self.stream, step))
        repeats = self.n_locations > len(self.locations)
        chosen = self.locations[random.choice(len(self.locations), self.n_locations, replace=repeats)]
        order = random.permuted(np.tile(self.rows, (self.n_locations, 1)), axis=1)[:, : self.n_subjects]
        centres = np.repeat(chosen, self.n_subjects, axis=0)
        patches = _cut(self.volumes, order.ravel(), centres, self.patch_size_vox)
        return patches.unflatten(0, (self.n_locations, self.n_subjects))


def _cut(volumes: torch.Tensor, rows: np.ndarray, centres: np.ndarray, size_vox: int) -> torch.Tensor:
    device = volumes.device
    rows_there = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
    centres_there = torch.from_numpy(np.asarray(centres, dtype=np.int64)).to(device)
    return gather_patches(volumes, rows_there, centres_there, size_vox)
