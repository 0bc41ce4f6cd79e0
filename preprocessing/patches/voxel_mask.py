"""The list of locations, and the way between images and lists of locations."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.grid import Grid


@dataclass(frozen=True, eq=False)
class VoxelMask:
    """The locations of a template grid: the True voxels of its brain mask, in C order of the (X, Y, Z) array.

    Parameters
    ----------
    grid : Grid
    brain_mask : ndarray of bool, (X, Y, Z)

    Raises
    ------
    UserError
        The mask has another shape than the grid, or is empty.
    """

    grid: Grid
    brain_mask: np.ndarray

    def __post_init__(self):
        mask = np.ascontiguousarray(self.brain_mask, dtype=bool)
        if mask.shape != self.grid.size_vox:
            raise UserError(
                f"Template brain mask: has {mask.shape} voxels, expected the grid's {self.grid.size_vox}. "
                "Resample it to the template grid."
            )
        if not mask.any():
            raise UserError("Template brain mask: is empty, expected at least one voxel. Give another mask.")
        object.__setattr__(self, "brain_mask", mask)

    @cached_property
    def flat_index(self) -> np.ndarray:
        """Where each location lies in the flattened (X*Y*Z) array; (P,) int64, ascending."""
        return np.flatnonzero(self.brain_mask)

    @cached_property
    def locations(self) -> np.ndarray:
        """Voxel indices, (P, 3) int32."""
        return np.stack(np.unravel_index(self.flat_index, self.grid.size_vox), axis=1).astype(np.int32)

    @property
    def size(self) -> int:
        """P, the number of locations."""
        return len(self.flat_index)

    @cached_property
    def mask_hash(self) -> str:
        """Stands for the grid and the mask together; what is stored by location carries it along."""
        content = hashlib.sha256(repr(self.grid.size_vox).encode())
        # Rounded to a micrometre: an affine that went through JSON or NIfTI's float32 is the same affine.
        content.update((np.round(self.grid.affine, 3) + 0.0).astype("<f8").tobytes())
        content.update(np.packbits(self.brain_mask).tobytes())
        return content.hexdigest()[:16]

    def transform(self, volume: np.ndarray) -> np.ndarray:
        """Values at the locations: (..., X, Y, Z) to (..., P)."""
        lead = volume.shape[:-3]
        if volume.shape[-3:] != self.grid.size_vox:
            raise ValueError(f"volume {volume.shape} does not end in the grid {self.grid.size_vox}")
        return np.take(volume.reshape(*lead, -1), self.flat_index, axis=-1)

    def inverse_transform(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Put values back into place: (..., P) to (..., X, Y, Z), `fill` outside the mask. Inverse of `gather`."""
        values = np.asarray(values)
        if values.shape[-1:] != (self.size,):
            raise ValueError(f"values {values.shape} do not end in {self.size} locations")
        volume = np.full((*values.shape[:-1], self.brain_mask.size), fill, dtype=values.dtype)
        volume[..., self.flat_index] = values
        return volume.reshape(*values.shape[:-1], *self.grid.size_vox)


def patch_size_vox(patch_size_mm: float, spacing_mm: float) -> int:
    """The odd number of voxels that comes nearest to a patch size (at a tie: the larger one)."""
    return 2 * int(np.floor((patch_size_mm / spacing_mm - 1) / 2 + 0.5)) + 1 if patch_size_mm > spacing_mm else 1
