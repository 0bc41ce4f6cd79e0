"""Slices of a scan and of the map over it in three planes.

Axial and coronal slices follow the radiological convention: the patient's right is on the left of the picture. In
sagittal slices, anterior is on the right. The top is superior, or anterior in axial slices.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from .colour_scale import LESION_COLOUR, ColourScale

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
NORMAL: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Axis (0 x, 1 y, 2 z) perpendicular to each plane."""
EDGES: dict[Plane, tuple[str, str]] = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("P", "A")}
"""Orientation letters at the left and right edge of a slice."""
_MARGIN_MM = 6.0


@dataclass(frozen=True, eq=False)
class Head:
    """Scan, map and masks of one subject for drawing, with axes flipped and permuted to RAS+ without interpolation.

    Attributes
    ----------
    grey : ndarray, (X, Y, Z)
        Scan, scaled to 0 to 1 by the intensities of the brain.
    scores : ndarray, (X, Y, Z)
        Below the colour scale where there is no score.
    brain, lesion : ndarray of bool, (X, Y, Z)
    affine : ndarray, (4, 4)
    scale : ColourScale
    """

    grey: np.ndarray
    scores: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    affine: np.ndarray
    scale: ColourScale

    @classmethod
    def from_volumes(
        cls,
        scan: Volume,
        map: Volume,
        scale: ColourScale,
        *,
        brain_mask: Volume | None = None,
        covered: Volume | None = None,
        lesion_mask: Volume | None = None,
    ) -> "Head":
        """Reorient volumes of one grid from any stored orientation.

        Parameters
        ----------
        scan, map : Volume
        scale : ColourScale
        brain_mask : Volume of bool, optional
            Defines the field of view and the intensity window.
        covered : Volume of bool, optional
            Voxels of the map with a score.
        lesion_mask : Volume of bool, optional
        """
        grey, affine = upright(scan)
        scores, _ = upright(map)
        usable = np.isfinite(scores)
        if covered is not None:
            usable &= upright(covered)[0].astype(bool)
        brain = usable if brain_mask is None else upright(brain_mask)[0].astype(bool)
        brain = brain if brain.any() else np.ones(grey.shape, bool)
        lesion = np.zeros(grey.shape, bool) if lesion_mask is None else upright(lesion_mask)[0].astype(bool)
        black, white = (float(value) for value in np.percentile(grey[brain], [0.5, 99.7]))
        grey = np.clip((grey - black) / max(white - black, 1e-12), 0, 1)
        # A value below the scale means "no colour", so interpolation at the border creates no colour.
        scores = np.where(usable & brain, scores, 2 * scale.low - scale.high)
        return cls(grey, scores, brain, lesion, affine, scale)

    @property
    def spacing_mm(self) -> np.ndarray:
        """Edge lengths of a voxel, (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    def index_of(self, point_mm: np.ndarray) -> np.ndarray:
        """Index of the voxel at a point in RAS+ mm, clipped to the grid: (3,) int."""
        index = np.linalg.inv(self.affine)[:3] @ np.append(point_mm, 1)
        return np.clip(np.round(index).astype(int), 0, np.array(self.grey.shape) - 1)

    def height_mm(self, plane: Plane, index: int) -> float:
        """Position of a slice along the normal of the plane, at its centre."""
        axis = NORMAL[plane]
        centre = (np.array(self.grey.shape) - 1) / 2
        centre[axis] = index
        return float(self.affine[axis, :3] @ centre + self.affine[axis, 3])

    def tile(self, plane: Plane, index: int, height_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice of the scan and of the map over it, with lesion outlines: two (height_px, W, 3) in [0, 1]."""
        scan = np.clip(self.enlarged(self.grey, plane, index, height_px), 0, 1)
        above = np.repeat(scan[..., None], 3, axis=2)
        below = self.scale.paint(scan, self.enlarged(self.scores, plane, index, height_px))
        if np.take(self.lesion, index, axis=NORMAL[plane]).any():
            line = outline(self.enlarged(self.lesion, plane, index, height_px) > 0.5)
            above[line] = below[line] = LESION_COLOUR
        return above, below

    def enlarged(self, voxels: np.ndarray, plane: Plane, index: int, height_px: int) -> np.ndarray:
        """Slice of an array on the grid of the scan, cut to the brain and interpolated: (height_px, W)."""
        across, up = self._axes(plane)
        spacing = self.spacing_mm
        extents = tuple(self._extent(axis) for axis in (across, up))
        extent_up = extents[1].stop - extents[1].start
        zoom = np.array([spacing[up], spacing[across]]) * height_px / (extent_up * spacing[up])
        plane_voxels = np.take(voxels, index, axis=NORMAL[plane])[extents].T[::-1].astype(np.float32)
        if plane != "sagittal":
            plane_voxels = plane_voxels[:, ::-1]
        return ndimage.zoom(plane_voxels, zoom, order=1)

    def place_in_tile(self, plane: Plane, index: np.ndarray) -> tuple[float, float]:
        """Position of a voxel in its tile: fraction of the width from the left and of the height from the top."""
        shares = []
        for axis in self._axes(plane):
            extent = self._extent(axis)
            shares.append((int(index[axis]) - extent.start + 0.5) / (extent.stop - extent.start))
        across, up = shares
        return (across if plane == "sagittal" else 1 - across), 1 - up

    @staticmethod
    def _axes(plane: Plane) -> tuple[int, int]:
        across, up = (axis for axis in range(3) if axis != NORMAL[plane])
        return across, up

    def _extent(self, axis: int) -> slice:
        """Extent of the brain along an axis, with a margin."""
        places = np.flatnonzero(self.brain.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(_MARGIN_MM / self.spacing_mm[axis]))
        return slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + margin + 1, self.brain.shape[axis]))


def outline(area: np.ndarray) -> np.ndarray:
    """Return the pixels around an area, as bool."""
    return np.asarray(ndimage.binary_dilation(area)) & ~np.asarray(area, dtype=bool)


def upright(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute the axes to the closest RAS+ orientation; return voxels and affine."""
    turn = nib.orientations.io_orientation(volume.affine)
    turned = nib.orientations.apply_orientation(volume.voxels, turn)
    return turned, volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.voxels.shape)
