"""What a detector looks at: some numbers for every location of a brain.

All kinds answer one question: given a subject's channels on the template grid, which numbers stand for each location?
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ...data_manifests.errors import UserError
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..encoder.dense_inference import encode_densely
from ..encoder.network import PatchEncoder
from ..tensor_file import opened_tensors, write_tensors

_SAMPLES = 20_000
"""Patches of each control from which the components are learnt."""
_AT_ONCE = 100_000
"""Locations whose patches are held at a time."""
REACH_OF_PATCHES_VOX = 1
_NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)


class Features(Protocol):
    """Numbers for every location."""

    @property
    def size(self) -> int:
        """How many (d)."""
        ...

    @property
    def reach_vox(self) -> int:
        """How far off a location they look, in voxels."""
        ...

    def compute(self, channels: np.ndarray) -> np.ndarray:
        """Of one subject: channels (C, X, Y, Z) float32 to (P, d) float32."""
        ...


@dataclass(frozen=True, eq=False)
class VoxelFeatures:
    """The values of some channels at the voxel itself.

    Attributes
    ----------
    grid : VoxelMask
    rows : tuple of int
        Which channels.
    """

    grid: VoxelMask
    rows: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def reach_vox(self) -> int:
        return 0

    def compute(self, channels: np.ndarray) -> np.ndarray:
        return self.grid.transform(channels[list(self.rows)]).T.astype(np.float32)


@dataclass(frozen=True, eq=False)
class LatentFeatures:
    """The encoder's codes.

    Attributes
    ----------
    grid : VoxelMask
    rows : tuple of int
        The channels that the encoder was trained on.
    encoder : PatchEncoder
    device : str or torch.device
    """

    grid: VoxelMask
    rows: tuple[int, ...]
    encoder: PatchEncoder
    device: torch.device | str = "cpu"

    @property
    def size(self) -> int:
        return self.encoder.latent_size

    @property
    def reach_vox(self) -> int:
        return max(patch_shape.half for patch_shape in self.encoder.patch_shapes)

    def compute(self, channels: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(channels[list(self.rows)].astype(np.float32))
        return encode_densely(self.encoder, chosen, self.grid, device=self.device).numpy()


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Principal components of the 3x3x3 voxels around: what a linear encoder without training keeps.

    Attributes
    ----------
    grid : VoxelMask
    rows : tuple of int
        Which channels.
    components : ndarray, (27 * len(rows), d), float32
        Orthonormal; voxels in C order, channel by channel.
    """

    grid: VoxelMask
    rows: tuple[int, ...]
    components: np.ndarray

    @property
    def size(self) -> int:
        return self.components.shape[1]

    @property
    def reach_vox(self) -> int:
        return REACH_OF_PATCHES_VOX

    def compute(self, channels: np.ndarray) -> np.ndarray:
        chosen = channels[list(self.rows)]
        blocks = (np.arange(a, min(a + _AT_ONCE, self.grid.size)) for a in range(0, self.grid.size, _AT_ONCE))
        return np.concatenate([_patches(chosen, self.grid, block) @ self.components for block in blocks])

    @classmethod
    def learn(
        cls,
        controls: Iterable[tuple[np.ndarray, np.ndarray]],
        grid: VoxelMask,
        rows: Sequence[int],
        size: int,
        seed: int,
    ) -> "PatchFeatures":
        """Learn the components from controls: the channels (C, X, Y, Z) and the brain (P,) of each.

        Raises
        ------
        UserError
            More components than numbers in a patch.
        """
        width = 27 * len(rows)
        if size > width:
            raise UserError(
                f"{size} components of patches with {width} numbers, expected at most {width}. "
                f"Lower models.ensemble.patch_components."
            )
        random = np.random.default_rng(seed)
        total, products, count = np.zeros(width), np.zeros((width, width)), 0
        for channels, inside in controls:
            brain = np.flatnonzero(inside)
            index = np.sort(random.choice(brain, min(_SAMPLES, len(brain)), replace=False))
            patches = _patches(channels[list(rows)], grid, index).astype(np.float64)
            total, products, count = total + patches.sum(0), products + patches.T @ patches, count + len(patches)
        mean = total / count
        _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        return cls(grid, tuple(rows), np.ascontiguousarray(vectors[:, ::-1][:, :size], np.float32))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        return write_tensors(path, {"components": self.components}, rows=" ".join(map(str, self.rows)))

    @classmethod
    def load(cls, path: Path, grid: VoxelMask) -> "PatchFeatures":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        with opened_tensors(path, "components of patches") as file:
            rows = tuple(int(row) for row in file.about["rows"].split())
            components = file.array("components", "float32", 2)
            if components.shape[0] != 27 * len(rows) or min(rows) < 0:
                raise ValueError(f"its components are {components.shape}, for channels {rows}")
            return cls(grid, rows, components)


def _patches(channels: np.ndarray, grid: VoxelMask, index: np.ndarray) -> np.ndarray:
    """3x3x3 voxels around some locations, (len(index), C * 27) float32; 0 beyond the grid, as the background is."""
    padded = np.pad(channels.astype(np.float32), [(0, 0), (1, 1), (1, 1), (1, 1)])
    x, y, z = (grid.locations[index].astype(np.int64) + 1).T
    found = [padded[:, x + dx, y + dy, z + dz] for dx, dy, dz in _NEIGHBOURS]  # 27 of (C, n)
    return np.stack(found, axis=-1).transpose(1, 0, 2).reshape(len(index), -1)
