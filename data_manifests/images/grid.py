"""Where the voxels of an image lie: size, affine, and what a header says of them."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Attributes
    ----------
    size_vox : tuple of int, (X, Y, Z)
    affine : ndarray, (4, 4)
        Voxel indices to RAS+ millimetres.
    qform_code, sform_code : int
        Kept so that a map written for a scan carries the scan's own codes.
    qform : ndarray, (4, 4), or None
        Where the file's qform is turned or shifted against its sform (which is then `affine`): the qform, so that a
        map written for the scan carries it too. None in the usual case.
    unit : str or None
        Where the header names another unit of length than the millimetre, that unit: the numbers are millimetres all
        the same, or the file would have been refused.
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
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Stored orientation, as ``"RAS"``."""
        return "".join(aff2axcodes(self.affine))

    def same_as(self, other: "Grid", tolerance_mm: float = 1e-2) -> bool:
        """Same size, and no corner of the two grids further apart than the tolerance."""
        if self.size_vox != other.size_vox:
            return False
        return apart_mm(self.affine, other.affine, self.size_vox) <= tolerance_mm

    def apart_in_words(self, other: "Grid") -> str:
        """How far apart two grids of one size lie; nothing where their sizes already tell them apart."""
        if self.size_vox != other.size_vox:
            return ""
        return f", up to {apart_mm(self.affine, other.affine, self.size_vox):.3g} mm apart"

    def __str__(self) -> str:
        size = "x".join(str(n) for n in self.size_vox)
        spacing = "x".join(f"{mm:.3g}" for mm in self.spacing_mm)
        return f"{size} voxels of {spacing} mm, {self.orientation}"


def apart_mm(one: np.ndarray, other: np.ndarray, size_vox: tuple[int, int, int]) -> float:
    """Largest distance between where two affines put a corner of a grid."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in size_vox], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
