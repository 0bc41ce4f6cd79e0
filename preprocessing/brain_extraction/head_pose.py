"""Head pose: a coarse fit of the template's brain to a scan, which takes a second or two.

It serves to check whether a mask has the shape of a brain, and to measure the tilt of the head. Networks for brain
extraction work well only on upright heads.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import linalg

from ...data_manifests.images.volume import Grid, Volume
from ..registration.coregistration import one_thread
from ..registration.register import winsorised
from ..registration.resampling import LPS, coarsened, ras_affine, to_itk
from ..registration.template import load_template
from ..registration.template_transform import TemplateTransform

_SPACING_MM = 4.0
_ROOM_MM = 30.0
"""Margin for scalp, skull and air around the brain in an upright copy, which excludes the neck."""


@dataclass(frozen=True, eq=False)
class TemplateFit:
    """Affine fit of the template's brain to a scan.

    Attributes
    ----------
    affine : ndarray, (4, 4)
        Template RAS mm to native RAS mm.
    """

    affine: np.ndarray

    def overlap_with(self, mask: Volume) -> float:
        """Dice of a native mask with the template's brain; about 0.95 for a brain."""
        template = load_template(_SPACING_MM)
        warped = TemplateTransform.from_affine(self.affine).to_template(mask, template.grid, interpolation="linear")
        target = template.brain_mask.voxels
        return float(2 * (warped.voxels & target).sum() / (warped.voxels.sum() + target.sum()))

    @property
    def rotation(self) -> np.ndarray:
        """Rotation part of the affine, (3, 3)."""
        return np.asarray(linalg.polar(self.affine[:3, :3])[0])

    def tilt_degrees(self, grid: Grid) -> float:
        """Angle in degrees between the head and the axes of a RAS grid."""
        axes = grid.affine[:3, :3] / grid.spacing_mm
        cosine = (np.trace(axes.T @ self.rotation) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def upright_grid(self, spacing_mm: float) -> Grid:
        """Grid around the head whose axes are aligned with the head, as in the template."""
        template = load_template(_SPACING_MM)
        corners = _corners_mm(template.brain_mask)
        middle, half = corners.mean(0), np.ptp(corners, axis=0) / 2
        # The box holds the scaled brain; the grid itself is not sheared, so the head keeps its shape.
        half = np.abs(linalg.polar(self.affine[:3, :3], side="right")[1]) @ half
        low, high = middle - half - _ROOM_MM, middle + half + _ROOM_MM
        x, y, z = (int(n) for n in np.ceil((high - low) / spacing_mm) + 1)
        affine = np.eye(4)
        affine[:3, :3] = self.rotation * spacing_mm
        affine[:3, 3] = self.affine[:3, :3] @ middle + self.affine[:3, 3] + self.rotation @ (low - middle)
        return Grid((x, y, z), affine)


def fit_template(t1w: Volume, mask: Volume) -> TemplateFit:
    """Fit the template's brain to a masked T1w: rigid, then affine, by correlation.

    Parameters
    ----------
    t1w : Volume
    mask : Volume, bool
        On the grid of `t1w`, not empty.
    """
    template = load_template(_SPACING_MM)
    brain = coarsened(t1w.with_voxels(winsorised(t1w.voxels, mask.voxels)), _SPACING_MM)
    fixed, moving = to_itk(template.t1w), to_itk(brain)
    centre = LPS @ _centre_mm(template.brain_mask)
    start = sitk.Euler3DTransform()
    start.SetCenter(centre.tolist())
    start.SetTranslation((LPS @ _centre_mm(mask) - centre).tolist())
    rigid = _descend(fixed, moving, start)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre.tolist())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    affine = _descend(fixed, moving, affine)
    return TemplateFit(ras_affine(affine))


def _descend(fixed: sitk.Image, moving: sitk.Image, start):
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    # The step size is estimated at each iteration, in millimetres: with a fixed rule one affine in eight diverged.
    method.SetOptimizerAsGradientDescent(
        learningRate=1.0,
        numberOfIterations=100,
        convergenceMinimumValue=1e-6,
        convergenceWindowSize=8,
        estimateLearningRate=method.EachIteration,
        maximumStepSizeInPhysicalUnits=2.0,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2])
    method.SetSmoothingSigmasPerLevel([_SPACING_MM])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(start, inPlace=True)
    try:
        with one_thread():
            method.Execute(fixed, moving)
    except RuntimeError:
        # The images do not overlap; the overlap of the result shows it.
        pass
    return start


def _centre_mm(mask: Volume) -> np.ndarray:
    return mask.affine[:3, :3] @ np.argwhere(mask.voxels).mean(0) + mask.affine[:3, 3]


def _corners_mm(mask: Volume) -> np.ndarray:
    indices = np.argwhere(mask.voxels)
    return np.array([indices.min(0), indices.max(0)]) * mask.grid.spacing_mm + mask.affine[:3, 3]
