"""Mask of the analysed voxels, and conversion between images and arrays over these voxels."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.grid import Grid
from ..convolution import convolved, gaussian_kernel


@dataclass(frozen=True, eq=False)
class VoxelMask:
    """Mask of the analysed voxels of a template grid, in C order of the (X, Y, Z) array.

    Parameters
    ----------
    grid : Grid
    brain_mask : ndarray of bool, (X, Y, Z)

    Raises
    ------
    UserError
        The shape of the mask differs from that of the grid, or the mask is empty.
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
        """Index of each voxel in the flattened (X*Y*Z) array, (P,) int64, ascending."""
        return np.flatnonzero(self.brain_mask)

    @cached_property
    def locations(self) -> np.ndarray:
        """Indices (x, y, z) of the voxels, (P, 3) int32."""
        return np.stack(np.unravel_index(self.flat_index, self.grid.size_vox), axis=1).astype(np.int32)

    @property
    def size(self) -> int:
        """P, the number of voxels in the mask."""
        return len(self.flat_index)

    @cached_property
    def mask_hash(self) -> str:
        """Hash of the grid and the mask, stored with arrays over the voxels to match them."""
        content = hashlib.sha256(repr(self.grid.size_vox).encode())
        # Rounded to a micrometre: the hash does not change if the affine is stored in JSON or as NIfTI's float32.
        content.update((np.round(self.grid.affine, 3) + 0.0).astype("<f8").tobytes())
        content.update(np.packbits(self.brain_mask).tobytes())
        return content.hexdigest()[:16]

    @cached_property
    def cropped(self) -> "VoxelMask":
        """The same voxels in the same order, on the grid of their bounding box."""
        low, high = self.locations.min(axis=0), self.locations.max(axis=0) + 1
        affine = self.grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        brain_mask = self.brain_mask[box]
        return VoxelMask(Grid(brain_mask.shape, affine), brain_mask)

    def blurred(self, values: np.ndarray, sigma_mm: float, truncate: float = 4.0) -> np.ndarray:
        """Blur values (..., P) with a Gaussian, (..., P); outside the mask they count as 0.

        Parameters
        ----------
        values : ndarray, (..., P), float32 or float64
        sigma_mm : float
            Standard deviation of the Gaussian.
        truncate : float
            Number of standard deviations up to which it is computed.
        """
        box = self.cropped
        kernels = [gaussian_kernel(sigma_vox, truncate) for sigma_vox in sigma_mm / box.grid.spacing_mm]
        return box.transform(convolved(box.inverse_transform(values), kernels))

    def transform(self, volume: np.ndarray) -> np.ndarray:
        """Extract the values of the voxels in the mask: (..., X, Y, Z) to (..., P)."""
        lead = volume.shape[:-3]
        if volume.shape[-3:] != self.grid.size_vox:
            raise ValueError(f"volume has shape {volume.shape}, expected (..., X, Y, Z) with grid {self.grid.size_vox}")
        return np.take(volume.reshape(*lead, -1), self.flat_index, axis=-1)

    def inverse_transform(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Insert values into a volume: (..., P) to (..., X, Y, Z), `fill` outside the mask. Inverse of `transform`."""
        values = np.asarray(values)
        if values.shape[-1:] != (self.size,):
            raise ValueError(f"values have shape {values.shape}, expected (..., P) with {self.size} voxels")
        volume = np.full((*values.shape[:-1], self.brain_mask.size), fill, dtype=values.dtype)
        volume[..., self.flat_index] = values
        return volume.reshape(*values.shape[:-1], *self.grid.size_vox)


def patch_size_vox(patch_size_mm: float, spacing_mm: float) -> int:
    """Nearest odd number of voxels for a patch size in millimetres; the larger one in case of a tie."""
    return 2 * int(np.floor((patch_size_mm / spacing_mm - 1) / 2 + 0.5)) + 1 if patch_size_mm > spacing_mm else 1
