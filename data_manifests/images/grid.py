"""Voxel grid of an image: size, affine and header fields of the geometry."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes

SAME_WITHIN_MM = 1e-2
"""Largest distance between corresponding corners of two grids that count as the same."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid of an image.

    Attributes
    ----------
    size_vox : tuple of int, (X, Y, Z)
    affine : ndarray, (4, 4)
        Voxel indices to RAS+ millimetres.
    qform_code, sform_code : int
        Kept so that a map written for a scan has the codes of the scan. Both are 0 for an image without orientation,
        also for an MGZ file whose flag says so.
    qform : ndarray, (4, 4), or None
        The file's qform if it is rotated or shifted relative to its sform (which is then `affine`), so that a map
        written for the scan has it too. Usually None.
    unit : str or None
        Unit of length in the header if it is not the millimetre. The values are millimetres nevertheless; otherwise
        reading the file is an error.
    """

    size_vox: tuple[int, int, int]
    affine: np.ndarray
    qform_code: int = 1
    sform_code: int = 1
    qform: np.ndarray | None = None
    unit: str | None = None

    @property
    def spacing_mm(self) -> np.ndarray:
        """Edge lengths of a voxel, (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Axis codes of the stored orientation, such as ``"RAS"``."""
        return "".join(aff2axcodes(self.affine))

    def same_as(self, other: "Grid") -> bool:
        """Whether the sizes are equal and no corner differs by more than `SAME_WITHIN_MM`."""
        if self.size_vox != other.size_vox:
            return False
        return max_corner_distance_mm(self.affine, other.affine, self.size_vox) <= SAME_WITHIN_MM

    def apart_in_words(self, other: "Grid") -> str:
        """Distance to a grid of the same size, as text for a message; empty if the sizes differ."""
        if self.size_vox != other.size_vox:
            return ""
        return f", up to {max_corner_distance_mm(self.affine, other.affine, self.size_vox):.3g} mm apart"

    def __str__(self) -> str:
        size = "x".join(str(n) for n in self.size_vox)
        spacing = "x".join(f"{mm:.3g}" for mm in self.spacing_mm)
        return f"{size} voxels of {spacing} mm, {self.orientation}"


def max_corner_distance_mm(one: np.ndarray, other: np.ndarray, size_vox: tuple[int, int, int]) -> float:
    """Largest distance between corresponding corners of a grid under two affines."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in size_vox], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
