"""Voxel-wise feature extraction.

All extractors map the channels of a subject on the template grid to a feature vector at each voxel of the brain mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..encoder.dense_inference import encode_densely
from ..encoder.network import PatchEncoder
from ..settings import PATCH_COMPONENTS
from ..tensor_file import opened_tensors, write_tensors

_SAMPLES = 20_000
"""Number of patches of each control from which the components are learnt."""
_AT_ONCE = 100_000
"""Number of voxels whose patches are held in memory at a time."""
REACH_OF_PATCHES_VOX = 1
_NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)


class Features(Protocol):
    """Voxel-wise feature extractor."""

    @property
    def size(self) -> int:
        """Number of features per voxel (d)."""
        ...

    @property
    def reach_vox(self) -> int:
        """Largest distance, in voxels, of the image values that a feature depends on."""
        ...

    def compute(self, channels: np.ndarray) -> np.ndarray:
        """Compute the features of one subject: channels (C, X, Y, Z) float32 to (P, d) float32."""
        ...


@dataclass(frozen=True, eq=False)
class VoxelFeatures:
    """Values of some channels at each voxel.

    Attributes
    ----------
    mask : VoxelMask
    rows : tuple of int
        Indices of the channels.
    """

    mask: VoxelMask
    rows: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.rows)

    @property
    def reach_vox(self) -> int:
        """Zero, since only the voxel itself is used."""
        return 0

    def compute(self, channels: np.ndarray) -> np.ndarray:
        """Return the values of the channels at each voxel, (P, d) float32."""
        return self.mask.transform(channels[list(self.rows)]).T.astype(np.float32)


@dataclass(frozen=True, eq=False)
class LatentFeatures:
    """Latents of the patches around each voxel.

    Attributes
    ----------
    mask : VoxelMask
    rows : tuple of int
        Indices of the channels that the encoder was trained on.
    encoder : PatchEncoder
    device : str or torch.device
    """

    mask: VoxelMask
    rows: tuple[int, ...]
    encoder: PatchEncoder
    device: torch.device | str = "cpu"

    @property
    def size(self) -> int:
        """Number of latent dimensions."""
        return self.encoder.latent_size

    @property
    def reach_vox(self) -> int:
        """Half the edge of the largest patch."""
        return max(patch_shape.half for patch_shape in self.encoder.patch_shapes)

    def compute(self, channels: np.ndarray) -> np.ndarray:
        """Encode the patches around each voxel, (P, d) float32."""
        chosen = torch.from_numpy(channels[list(self.rows)].astype(np.float32))
        return encode_densely(self.encoder, chosen, self.mask, device=self.device).numpy()


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Principal components of the 3x3x3 voxels around each voxel.

    Attributes
    ----------
    mask : VoxelMask
    rows : tuple of int
        Indices of the channels.
    components : ndarray, (27 * len(rows), d), float32
        Orthonormal columns; rows are ordered by channel, then by voxel in C order.
    """

    mask: VoxelMask
    rows: tuple[int, ...]
    components: np.ndarray

    @property
    def size(self) -> int:
        """Number of components."""
        return self.components.shape[1]

    @property
    def reach_vox(self) -> int:
        """One voxel, half the edge of the patch."""
        return REACH_OF_PATCHES_VOX

    def compute(self, channels: np.ndarray) -> np.ndarray:
        """Project the patch around each voxel onto the components, (P, d) float32."""
        chosen = channels[list(self.rows)]
        blocks = (np.arange(a, min(a + _AT_ONCE, self.mask.size)) for a in range(0, self.mask.size, _AT_ONCE))
        return np.concatenate([_patches(chosen, self.mask, block) @ self.components for block in blocks])

    @classmethod
    def learn(
        cls,
        controls: Iterable[tuple[np.ndarray, np.ndarray]],
        mask: VoxelMask,
        rows: Sequence[int],
        *,
        seed: int,
    ) -> "PatchFeatures":
        """Learn the first `PATCH_COMPONENTS` components from controls.

        Parameters
        ----------
        controls : iterable of (ndarray, ndarray)
            Channels (C, X, Y, Z) and brain mask (P,) of each control.
        mask : VoxelMask
        rows : sequence of int
            Indices of the channels.
        seed : int
        """
        width = 27 * len(rows)
        random = np.random.default_rng(seed)
        total, products, count = np.zeros(width), np.zeros((width, width)), 0
        for channels, inside in controls:
            brain = np.flatnonzero(inside)
            index = np.sort(random.choice(brain, min(_SAMPLES, len(brain)), replace=False))
            patches = _patches(channels[list(rows)], mask, index).astype(np.float64)
            total, products, count = total + patches.sum(0), products + patches.T @ patches, count + len(patches)
        mean = total / count
        _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        return cls(mask, tuple(rows), np.ascontiguousarray(vectors[:, ::-1][:, :PATCH_COMPONENTS], np.float32))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        return write_tensors(path, {"components": self.components}, rows=" ".join(map(str, self.rows)))

    @classmethod
    def load(cls, path: Path, mask: VoxelMask) -> "PatchFeatures":
        """Load saved components.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        with opened_tensors(path, "components of patches") as file:
            rows = tuple(int(row) for row in file.metadata["rows"].split())
            components = file.array("components", "float32", 2)
            if components.shape[0] != 27 * len(rows) or min(rows) < 0:
                raise ValueError(f"components {components.shape} do not match channels {rows}")
            return cls(mask, rows, components)


def _patches(channels: np.ndarray, mask: VoxelMask, index: np.ndarray) -> np.ndarray:
    """Extract the 3x3x3 voxels around the voxels `index`, (len(index), C * 27) float32; 0 outside the grid."""
    padded = np.pad(channels.astype(np.float32), [(0, 0), (1, 1), (1, 1), (1, 1)])
    x, y, z = (mask.locations[index].astype(np.int64) + 1).T
    neighbours = [padded[:, x + dx, y + dy, z + dz] for dx, dy, dz in _NEIGHBOURS]  # 27 of (C, n)
    return np.stack(neighbours, axis=-1).transpose(1, 0, 2).reshape(len(index), -1)
