"""Samplers of patch batches, cut from whole volumes on the device.

A batch is a pure function of (seed, step), so that a resumed run draws the same batches on any device. There are three
samplers: patches at random voxels, patches of many subjects at the same voxels, and edited patches with those of
healthy subjects at the same voxels. They are map-style datasets whose items are whole batches, for
``DataLoader(patches, batch_size=None, sampler=range(steps))``. Of several processes, each cuts a part of every batch;
the patches of a voxel stay together.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ...preprocessing.patches.volume_store import VolumeStore
from .edited_patches import EditedPatches
from .patch_shape import Patches, PatchShape
from .processes import ALONE, Processes

MIXED, COLOCATED, MONITOR, NORMS, CONTRAST = range(5)
"""Independent streams of random numbers."""
_DRAWS = 100
"""Attempts to draw patches inside the brain of their subject; afterwards, patches outside are accepted."""
_SHAM_SHARE = 1 / 6
"""Fraction of the edited patches of a batch that are shams, if there are any."""


def volumes_on(store: VolumeStore, device: torch.device | str) -> torch.Tensor:
    """Volumes of the store as a float16 tensor (S, C, X, Y, Z); still memory-mapped on the CPU."""
    return torch.from_numpy(store.volumes).to(device)


@dataclass(frozen=True, eq=False)
class MixedPatches(Dataset[Patches]):
    """Sampler of random subjects at random voxels of their brains.

    Attributes
    ----------
    volumes : tensor, (S, C, X, Y, Z)
    inside : ndarray of bool, (S, X, Y, Z)
        Brain mask of each subject; may be memory-mapped.
    rows : ndarray of int64
        Subjects to draw from.
    voxels : ndarray of int, (P, 3)
    patch_shapes : tuple of PatchShape
    size : int
        Patches per batch.
    seed : int
    stream : int
    processes : Processes
        Those that a batch is divided among.
    """

    volumes: torch.Tensor
    inside: np.ndarray
    rows: np.ndarray
    voxels: np.ndarray
    patch_shapes: tuple[PatchShape, ...]
    size: int
    seed: int
    stream: int = MIXED
    processes: Processes = ALONE

    def __getitem__(self, step: int) -> Patches:
        """Return the patches (size, C, p, p[, p]) of one step, or a part, one tensor per patch shape."""
        random = np.random.default_rng((self.seed, self.stream, step))
        rows, centres = np.zeros(self.size, np.int64), np.zeros((self.size, 3), np.int64)
        outside = np.arange(self.size)
        for _ in range(_DRAWS):
            rows[outside] = random.choice(self.rows, len(outside))
            centres[outside] = self.voxels[random.integers(len(self.voxels), size=len(outside))]
            outside = outside[~self.inside[rows[outside], *centres[outside].T]]
            if not len(outside):
                break
        return _cut(self.volumes, rows[self.processes.part], centres[self.processes.part], self.patch_shapes)


@dataclass(frozen=True, eq=False)
class ColocatedPatches(Dataset[Patches]):
    """Sampler of several subjects at the same voxels.

    Attributes
    ----------
    volumes, inside, rows, patch_shapes, seed, stream, processes
        As in `MixedPatches`; the items are voxels.
    voxels : ndarray of int, (P, 3)
        Voxels inside the brain of at least `n_subjects` of the rows.
    n_voxels : int
        Voxels per batch (B), drawn without replacement if there are enough.
    n_subjects : int
        Subjects per voxel (n), of those whose brain contains it. They are drawn in random order at each voxel, so that
        any cut through the axis of subjects is a random split.
    """

    volumes: torch.Tensor
    inside: np.ndarray
    rows: np.ndarray
    voxels: np.ndarray
    patch_shapes: tuple[PatchShape, ...]
    n_voxels: int
    n_subjects: int
    seed: int
    stream: int = COLOCATED
    processes: Processes = ALONE

    def __getitem__(self, step: int) -> Patches:
        """Return the patches (B, n, C, p, p[, p]) of one step, or a part, one tensor per patch shape."""
        random = np.random.default_rng((self.seed, self.stream, step))
        replace = self.n_voxels > len(self.voxels)
        chosen = self.voxels[random.choice(len(self.voxels), self.n_voxels, replace=replace)]
        outside = ~self.inside[self.rows[:, None], *chosen.T]  # (len(rows), B)
        order = np.argsort(random.random(outside.shape) + outside, axis=0)[: self.n_subjects].T[self.processes.part]
        centres = np.repeat(chosen[self.processes.part], self.n_subjects, axis=0)
        patches = _cut(self.volumes, self.rows[order].ravel(), centres, self.patch_shapes)
        return tuple(patch.unflatten(0, order.shape) for patch in patches)


@dataclass(frozen=True, eq=False)
class ContrastBatch:
    """Patches of healthy controls and of an edited one at the same voxels.

    Attributes
    ----------
    healthy : tensors, (B, n, C, p, p[, p])
        Different controls in random order; the last one is the edited one, before the edit.
    drawn : tensors, (B, C, p, p[, p])
        The edited patches.
    is_edited : tensor of bool, (B,)
        False: the edit is a sham.
    """

    healthy: Patches
    drawn: Patches
    is_edited: torch.Tensor


@dataclass(frozen=True, eq=False)
class ContrastPatches(Dataset[ContrastBatch]):
    """Sampler of edited patches, with those of healthy controls at the same voxels.

    Attributes
    ----------
    volumes, inside, rows, patch_shapes, seed, stream, processes
        As in `MixedPatches`; the items are edited patches.
    edited : EditedPatches
        Of voxels inside the brain of at least `n_subjects` of the rows; at least one is no sham. Its controls are
        indices of `rows`.
    n_voxels : int
        Edited patches per batch (B).
    n_subjects : int
        Healthy controls at the voxel of each (n), of those whose brain contains it.
    """

    volumes: torch.Tensor
    inside: np.ndarray
    rows: np.ndarray
    edited: EditedPatches
    patch_shapes: tuple[PatchShape, ...]
    n_voxels: int
    n_subjects: int
    seed: int
    stream: int = CONTRAST
    processes: Processes = ALONE

    def __getitem__(self, step: int) -> ContrastBatch:
        """Return the patches of one step, or a part."""
        random = np.random.default_rng((self.seed, self.stream, step))
        edits, shams = np.flatnonzero(self.edited.is_edited), np.flatnonzero(~self.edited.is_edited)
        n_shams = int(_SHAM_SHARE * self.n_voxels) if len(shams) else 0
        chosen = np.concatenate([random.choice(edits, self.n_voxels - n_shams), random.choice(shams, n_shams)])
        voxels, own = self.edited.voxels[chosen], self.edited.controls[chosen]
        rank = random.random((len(self.rows), self.n_voxels)) + ~self.inside[self.rows[:, None], *voxels.T]
        rank[own, np.arange(self.n_voxels)] = np.inf
        others = np.argsort(rank, axis=0)[: self.n_subjects - 1].T
        order = np.concatenate([others, own[:, None]], axis=1)[self.processes.part]
        chosen, centres = chosen[self.processes.part], np.repeat(voxels[self.processes.part], self.n_subjects, axis=0)
        patches = _cut(self.volumes, self.rows[order].ravel(), centres, self.patch_shapes)
        at = torch.from_numpy(chosen).to(self.volumes.device)
        return ContrastBatch(
            tuple(patch.unflatten(0, order.shape) for patch in patches),
            tuple(patch[at].float() for patch in self.edited.patches),
            torch.from_numpy(self.edited.is_edited[chosen]).to(self.volumes.device),
        )


def controls_at_voxels(inside: np.ndarray, rows: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Count the subjects `rows` whose brain contains each voxel, (P,) int64."""
    count = np.zeros(len(voxels), np.int64)
    for row in rows:
        count += inside[row][tuple(voxels.T)]
    return count


def _cut(volumes: torch.Tensor, rows: np.ndarray, centres: np.ndarray, patch_shapes: tuple[PatchShape, ...]) -> Patches:
    device = volumes.device
    row_index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
    centre_index = torch.from_numpy(np.asarray(centres, dtype=np.int64)).to(device)
    return tuple(patch_shape.cut(volumes, row_index, centre_index) for patch_shape in patch_shapes)
