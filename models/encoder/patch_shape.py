"""Patch shapes: the neighbourhood of a voxel that is the input of an encoder.

Several patch shapes may be combined, in one or more planes and of different sizes: each is cut, encoded and decoded
separately, and their latents are combined into one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..settings import Plane

AXES: Mapping[Plane, tuple[int, ...]] = {
    "axial": (0, 1),
    "coronal": (0, 2),
    "sagittal": (1, 2),
    "volume": (0, 1, 2),
}
"""Axes (x, y, z) of the template grid in which a patch extends."""

Patches = tuple[torch.Tensor, ...]
"""One tensor per patch shape, (..., C, p, p), or (..., C, p, p, p) for cubes."""


@dataclass(frozen=True, repr=False)
class PatchShape:
    """Square in one plane, or cube, around a voxel.

    Attributes
    ----------
    plane : {"axial", "coronal", "sagittal", "volume"}
    size_vox : int
        Odd edge length p.
    """

    plane: Plane
    size_vox: int

    def __repr__(self) -> str:
        return f"{self.plane} {self.size_vox}"

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes (x, y, z) of the template grid in which the patch extends."""
        return AXES[self.plane]

    @property
    def half(self) -> int:
        """Number of voxels on each side of the central voxel."""
        return self.size_vox // 2

    def cut(self, volumes: torch.Tensor, rows: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        """Cut patches of this shape out of volumes.

        Parameters
        ----------
        volumes : tensor, (S, C, X, Y, Z)
        rows : tensor of int64, (N,)
            Subject of each patch.
        centres : tensor of int64, (N, 3)
            Voxel indices of the central voxels.

        Returns
        -------
        tensor, (N, C, p, p) or (N, C, p, p, p), float32
            Axes in the order of the grid; voxels beyond the grid are 0, as the background is.
        """
        indices, inside = [], torch.ones((), dtype=torch.bool, device=volumes.device)
        for axis, size in enumerate(volumes.shape[2:]):
            reach = self.half if axis in self.axes else 0
            along = centres[:, axis, None] + torch.arange(-reach, reach + 1, device=volumes.device)
            shape = [len(centres), 1, 1, 1]
            shape[axis + 1] = 2 * reach + 1
            inside = inside & ((along >= 0) & (along < size)).reshape(shape)
            indices.append(along.clamp(0, size - 1).reshape(shape))
        boxes = volumes[rows[:, None, None, None], :, *indices].permute(0, 4, 1, 2, 3).float() * inside[:, None]
        return boxes.reshape(*boxes.shape[:2], *[self.size_vox] * len(self.axes))
