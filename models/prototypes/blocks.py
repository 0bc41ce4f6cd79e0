"""Blocks of neighbouring voxels that share prototypes, and the voxels around each block."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask

_EDGE_MM = 4.0
"""Least edge of a block."""
_REACH_MM = 7.0
"""Distance from the centre of a block to the voxels whose patches are its own: normal anatomy moves as far."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Division of the voxels of a mask into cubes.

    Attributes
    ----------
    mask : VoxelMask
    """

    mask: VoxelMask

    @property
    def edges(self) -> np.ndarray:
        """Edges of a block, in voxels along each axis."""
        return np.ceil(np.round(_EDGE_MM / np.asarray(self.mask.grid.spacing_mm), 3)).astype(np.int64)

    @cached_property
    def _numbered(self) -> tuple[np.ndarray, np.ndarray]:
        corners, number = np.unique(self.mask.locations // self.edges, axis=0, return_inverse=True)
        return corners * self.edges, number.reshape(-1).astype(np.int32)

    @property
    def corners(self) -> np.ndarray:
        """First voxel of each block, (B, 3) int64."""
        return self._numbered[0]

    @property
    def number(self) -> np.ndarray:
        """Block of each voxel of the mask, (P,) int32."""
        return self._numbered[1]

    @cached_property
    def index(self) -> np.ndarray:
        """Number of each voxel of the grid in the mask, (X, Y, Z) int32; -1 outside the mask."""
        return self.mask.inverse_transform(np.arange(self.mask.size, dtype=np.int32), fill=-1)

    @cached_property
    def offsets(self) -> np.ndarray:
        """From the first voxel of a block to the voxels around its centre, (n, 3) int64."""
        spacing_mm = np.asarray(self.mask.grid.spacing_mm)
        reach = np.ceil(_REACH_MM / spacing_mm).astype(int) + self.edges
        axes = [np.arange(-size, size + 1) for size in reach]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        from_centre_mm = (offsets - (self.edges - 1) / 2) * spacing_mm
        return offsets[(from_centre_mm**2).sum(axis=1) <= _REACH_MM**2]
