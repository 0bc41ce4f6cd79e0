"""Transform between a subject and the template, as arrays in RAS millimetres; applying it does not need ANTs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Grid, Volume
from ...data_manifests.typed_json import load_json
from .resampling import (
    LPS,
    Interpolation,
    blurred_for,
    continued_outwards,
    itk_affine,
    itk_displacements,
    resample,
)

WARP_STEP_MM = 1 / 64
"""Displacements are stored as multiples of this: 16 bits cover half a metre with an error below 0.01 mm."""

_TRANSFORM_FILE = "transform.json"
_WARP_FILE = "warps.npz"


@dataclass(frozen=True)
class JacobianRange:
    """Local volume change from the template to the subject inside the template's brain, without the affine.

    1 is no change, below 1 the subject is smaller, and values of 0 or less mean folding.
    """

    smallest: float
    percentile_1: float
    percentile_99: float


def jacobian_of(warp: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the Jacobian determinant of a warp, displacements (X, Y, Z, 3) in RAS mm on a RAS grid: (X, Y, Z)."""
    # The axes of the grid are RAS, so differences along them are derivatives in x, y and z.
    jacobian = np.empty((*warp.shape, 3))
    for axis, spacing in enumerate(grid.spacing_mm):
        jacobian[..., axis] = np.gradient(warp, spacing, axis=axis)
    return np.linalg.det(jacobian + np.eye(3))


@dataclass(frozen=True, eq=False)
class TemplateTransform:
    """Transform between a subject and the template, in both directions.

    Attributes
    ----------
    affine : ndarray, (4, 4)
        Maps template RAS mm to native RAS mm; applied after the warp.
    warp, inverse_warp : ndarray, (X, Y, Z, 3), float32, or None
        Displacements in RAS mm on `warp_grid`. A template point p maps to the native point affine(p + warp(p)); a
        native point q maps to the template point r + inverse_warp(r), with r = inverse(affine)(q). None for an affine
        transform.
    warp_grid : Grid or None
    jacobian_range : JacobianRange
    """

    affine: np.ndarray
    warp: np.ndarray | None
    inverse_warp: np.ndarray | None
    warp_grid: Grid | None
    jacobian_range: JacobianRange

    def to_template(
        self,
        volume: Volume,
        template_grid: Grid,
        *,
        interpolation: Interpolation,
        from_t1w: sitk.Transform | None = None,
    ) -> Volume:
        """Resample a native volume to a template grid in one interpolation; 0 outside its field of view.

        Parameters
        ----------
        volume : Volume
            In the subject's T1w space, on any grid.
        template_grid : Grid
        interpolation : {"linear", "nearest", "bspline", "volume"}
            See `resample`.
        from_t1w : SimpleITK.Transform, optional
            Maps points of the T1w to points of `volume` (LPS mm), for an image in another space; see `align_to_t1w`.
        """
        return resample(volume, template_grid, self._template_to_native(from_t1w), interpolation)

    def scan_to_template(
        self, scan: Volume, brain_mask: Volume, template_grid: Grid, *, from_t1w: sitk.Transform | None = None
    ) -> tuple[Volume, Volume]:
        """Resample a scan to a template grid in one cubic interpolation, without the influence of skull and background.

        Parameters
        ----------
        scan : Volume
        brain_mask : Volume, bool
            On the same grid.
        template_grid : Grid
        from_t1w : SimpleITK.Transform, optional
            As in `to_template`.

        Returns
        -------
        warped : Volume, float32
        field_of_view : Volume, bool
            Voxels of the template grid inside the scan.
        """
        spacing = float(template_grid.spacing_mm.max())
        reach_mm = 3 * max(spacing, float(scan.grid.spacing_mm.max()))
        smooth = blurred_for(continued_outwards(scan, brain_mask, reach_mm), spacing)
        warped = self.to_template(smooth, template_grid, interpolation="bspline", from_t1w=from_t1w)
        everywhere = scan.with_voxels(np.ones(scan.grid.size_vox, bool))
        return warped, self.to_template(everywhere, template_grid, interpolation="nearest", from_t1w=from_t1w)

    def to_native(
        self,
        volume: Volume,
        native_grid: Grid,
        *,
        interpolation: Interpolation,
        from_t1w: sitk.Transform | None = None,
    ) -> Volume:
        """Resample a template volume to a native grid in one interpolation; 0 outside.

        Parameters
        ----------
        volume : Volume
        native_grid : Grid
            In the space of the subject's T1w or of another image.
        interpolation : {"linear", "nearest", "bspline", "volume"}
            See `resample`.
        from_t1w : SimpleITK.Transform, optional
            Maps points of the T1w to points of that image (LPS mm).
        """
        return resample(volume, native_grid, self._native_to_template(from_t1w), interpolation)

    def scores_to_native(self, values: Volume, mask: Volume, native_grid: Grid) -> tuple[Volume, Volume]:
        """Resample a map that is defined inside a mask to native space, without the influence of values outside.

        Each native voxel is the linearly weighted mean of the surrounding template voxels in the mask.

        Parameters
        ----------
        values : Volume
            On a template grid.
        mask : Volume, bool
            On the same grid: where `values` are defined.
        native_grid : Grid

        Returns
        -------
        values : Volume, float32
            0 outside the coverage.
        coverage : Volume, bool
            Voxels with at least half of their weight inside the mask.
        """
        inside = mask.with_voxels(mask.voxels.astype(np.float32))
        masked = values.with_voxels(np.where(mask.voxels, values.voxels, 0).astype(np.float32))
        weight = self.to_native(inside, native_grid, interpolation="linear").voxels
        total = self.to_native(masked, native_grid, interpolation="linear").voxels
        covered = weight >= 0.5
        native = np.zeros_like(total)
        native[covered] = total[covered] / weight[covered]
        return Volume(native, native_grid), Volume(covered, native_grid)

    def points_to_template(self, points_mm: np.ndarray) -> np.ndarray:
        """Map native points to template space: (N, 3) to (N, 3), both in RAS mm."""
        return _moved(points_mm, self._native_to_template())

    def points_to_native(self, points_mm: np.ndarray) -> np.ndarray:
        """Map points of template space to the subject: (N, 3) to (N, 3), both in RAS mm."""
        return _moved(points_mm, self._template_to_native())

    def write_itk(self, to_template: Path, to_native: Path, *, from_t1w: sitk.Transform | None = None) -> None:
        """Write both directions as composite ITK transforms, for ANTs and other tools that use ITK.

        ``antsApplyTransforms -t`` resamples an image to the template with the first file, and an image of the template
        to the subject with the second. Points are mapped the other way: by the first file from the template.

        Parameters
        ----------
        to_template, to_native : Path
            Files that end in .h5; about 56 MB in all with a warp, since ITK stores displacements in 64 bits.
        from_t1w : SimpleITK.Transform, optional
            As in `to_template`, for an image in another space.
        """
        for path, transform in (
            (to_template, self._template_to_native(from_t1w)),
            (to_native, self._native_to_template(from_t1w)),
        ):
            composite = sitk.CompositeTransform([transform])
            composite.FlattenTransform()  # a file holds no composite within another
            with atomic_write(path) as temporary:
                sitk.WriteTransform(composite, str(temporary))

    @classmethod
    def from_affine(cls, affine: np.ndarray) -> "TemplateTransform":
        """Create a transform without a warp."""
        return cls(affine, None, None, None, JacobianRange(1.0, 1.0, 1.0))

    def affine_only(self) -> "TemplateTransform":
        """Return the transform without its warp."""
        return self.from_affine(self.affine)

    def save(self, folder: Path) -> Path:
        """Write ``transform.json`` and, with a warp, ``warps.npz``; each atomically."""
        if self.warp is not None and self.inverse_warp is not None:
            with atomic_write(folder / _WARP_FILE) as temporary:
                np.savez_compressed(temporary, warp=_to_steps(self.warp), inverse_warp=_to_steps(self.inverse_warp))
        jacobian = self.jacobian_range
        content = {
            "affine_template_to_native_ras_mm": self.affine.tolist(),
            "warp_step_mm": WARP_STEP_MM,
            "warp_size_vox": self.warp_grid and list(self.warp_grid.size_vox),
            "warp_grid_affine": self.warp_grid and self.warp_grid.affine.tolist(),
            "jacobian_range": [jacobian.smallest, jacobian.percentile_1, jacobian.percentile_99],
        }
        # Written last: a folder with this file is complete.
        with atomic_write(folder / _TRANSFORM_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
        return folder

    @classmethod
    def load(cls, folder: Path) -> "TemplateTransform":
        """Load a transform that `save` wrote.

        Raises
        ------
        UserError
            The folder holds no complete transform.
        """
        try:
            content = load_json(folder / _TRANSFORM_FILE)
            warp = inverse_warp = grid = None
            if content["warp_size_vox"] is not None:
                grid = Grid(tuple(content["warp_size_vox"]), np.array(content["warp_grid_affine"]))
                with np.load(folder / _WARP_FILE, allow_pickle=False) as arrays:
                    warp = arrays["warp"].astype(np.float32) * content["warp_step_mm"]
                    inverse_warp = arrays["inverse_warp"].astype(np.float32) * content["warp_step_mm"]
            jacobian = JacobianRange(*content["jacobian_range"])
            return cls(np.array(content["affine_template_to_native_ras_mm"]), warp, inverse_warp, grid, jacobian)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{private(folder, 'its folder')}: holds no complete transform to the template. Delete the subject's "
                "prepared folder and run prepare again."
            ) from error

    def jacobian(self) -> Volume | None:
        """Return the local volume change by the warp, without the affine, on `warp_grid`; None without a warp.

        1 is no change, and below 1 the subject is smaller.
        """
        if self.warp is None or self.warp_grid is None:
            return None
        return Volume(jacobian_of(self.warp, self.warp_grid).astype(np.float32), self.warp_grid)

    def _template_to_native(self, from_t1w: sitk.Transform | None = None) -> sitk.Transform:
        transform: sitk.Transform = itk_affine(self.affine)
        if self.warp is not None:
            # A composite transform applies the last transform first.
            transform = sitk.CompositeTransform([transform, self._itk_warp(self.warp)])
        return transform if from_t1w is None else sitk.CompositeTransform([from_t1w, transform])

    def _native_to_template(self, from_t1w: sitk.Transform | None = None) -> sitk.Transform:
        transform: sitk.Transform = itk_affine(np.linalg.inv(self.affine))
        if self.inverse_warp is not None:
            transform = sitk.CompositeTransform([self._itk_warp(self.inverse_warp), transform])
        return transform if from_t1w is None else sitk.CompositeTransform([transform, from_t1w.GetInverse()])

    def _itk_warp(self, warp: np.ndarray) -> sitk.Transform:
        assert self.warp_grid is not None
        return sitk.DisplacementFieldTransform(itk_displacements(warp, self.warp_grid))


def in_steps(displacements: np.ndarray) -> np.ndarray:
    """Round displacements to multiples of `WARP_STEP_MM`, as they are stored; float32."""
    return _to_steps(displacements).astype(np.float32) * WARP_STEP_MM


def _to_steps(displacements: np.ndarray) -> np.ndarray:
    limit = np.iinfo(np.int16)
    return np.clip(np.round(displacements / WARP_STEP_MM), limit.min, limit.max).astype(np.int16)


def _moved(points_mm: np.ndarray, transform: sitk.Transform) -> np.ndarray:
    moved = [transform.TransformPoint((np.asarray(point) @ LPS).tolist()) for point in points_mm]
    return np.array(moved).reshape(-1, 3) @ LPS
