"""Axial slices of scans, as two-dimensional networks see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...data_manifests.images.memory_map import temporary_array
from ...preprocessing.patches.voxel_mask import VoxelMask
from .scans import Controls, Scan

MULTIPLE = 16
"""The edges of slices are multiples of it, since networks halve them four times."""
_FEWEST_BRAIN = 0.1
"""A slice with a smaller share of the largest slice's brain is not learnt from."""


@dataclass(frozen=True, eq=False)
class SliceFrame:
    """Part of each axial slice that networks see: the analysed voxels, padded to multiples of `MULTIPLE`.

    Attributes
    ----------
    shape : (int, int, int)
        Of the template grid.
    low : ndarray, (3,)
        First voxel of the frame.
    n_slices : int
    size : (int, int)
        Edges of a slice, in voxels.
    """

    shape: tuple[int, int, int]
    low: np.ndarray
    n_slices: int
    size: tuple[int, int]

    @classmethod
    def around(cls, mask: VoxelMask) -> "SliceFrame":
        """Return the frame of the analysed voxels."""
        low, high = mask.locations.min(axis=0), mask.locations.max(axis=0) + 1
        x, y, z = (int(edge) for edge in high - low)
        size = tuple(-(-edge // MULTIPLE) * MULTIPLE for edge in (x, y))
        return cls(mask.grid.size_vox, low, z, (size[0], size[1]))

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Cut volumes (C, X, Y, Z) into slices (Z', C, H, W); 0 beyond the grid."""
        x, y, z = (int(first) for first in self.low)
        part = volume[:, x : x + self.size[0], y : y + self.size[1], z : z + self.n_slices]
        missing = [(0, edge - found) for edge, found in zip(self.size, part.shape[1:3], strict=True)]
        return np.ascontiguousarray(np.moveaxis(np.pad(part, [(0, 0), *missing, (0, 0)]), 3, 0))

    def paste(self, slices: np.ndarray) -> np.ndarray:
        """Put slices (Z', H, W) back into a volume (X, Y, Z), 0 elsewhere. Inverse of `cut` within the frame."""
        volume = np.zeros(self.shape, np.float32)
        x, y, z = (int(first) for first in self.low)
        part = volume[x : x + self.size[0], y : y + self.size[1], z : z + self.n_slices]
        part[:] = np.moveaxis(slices, 0, 2)[: part.shape[0], : part.shape[1]]
        return volume


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of one scan.

    Attributes
    ----------
    images : Tensor, (N, M, H, W), float32
    inside : Tensor of bool, (N, 1, H, W)
        Brain.
    """

    images: torch.Tensor
    inside: torch.Tensor

    @classmethod
    def of(cls, scan: Scan, frame: SliceFrame) -> "Slices":
        """Cut a scan; outside the brain it is 0."""
        images, inside = frame.cut(scan.images * scan.inside), frame.cut(scan.inside[None])
        return cls(torch.from_numpy(images), torch.from_numpy(inside))


@dataclass(frozen=True, eq=False)
class SliceBatches:
    """Random batches of the slices of some controls; a batch is a function of its number.

    Attributes
    ----------
    images : ndarray, (S, Z', M, H, W), float16
        May be memory-mapped.
    inside : ndarray of bool, (S, Z', 1, H, W)
    usable : ndarray of int, (n, 2)
        Control and slice of each slice with enough brain.
    size : int
        Slices of a batch.
    seed : int
    device : str or torch.device
    """

    images: np.ndarray
    inside: np.ndarray
    usable: np.ndarray
    size: int
    seed: int
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, controls: Controls, keys: Sequence[str], frame: SliceFrame, seed: int) -> "SliceBatches":
        """Cut the controls with these keys, and keep the slices in a temporary file."""
        n_channels = len(controls.channels.modalities)
        shape = len(keys), frame.n_slices
        images = temporary_array(controls.folder, np.float16, (*shape, n_channels, *frame.size))
        inside = temporary_array(controls.folder, np.bool_, (*shape, 1, *frame.size))
        for row, key in enumerate(keys):
            own = Slices.of(controls.scan(key), frame)
            images[row], inside[row] = own.images.numpy(), own.inside.numpy()
        brain = inside.sum(axis=(2, 3, 4))
        usable = np.argwhere(brain >= _FEWEST_BRAIN * brain.max())
        return cls(images, inside, usable, controls.preset.batch, seed, controls.device)

    def __getitem__(self, number: int) -> Slices:
        """Draw a batch: (size, M, H, W)."""
        random = np.random.default_rng([self.seed, number])
        at = tuple(self.usable[random.integers(len(self.usable), size=self.size)].T)
        images = torch.from_numpy(self.images[at].astype(np.float32))
        return Slices(images.to(self.device), torch.from_numpy(np.asarray(self.inside[at])).to(self.device))
