"""How a brain sits in its scan: the template's brain fitted to it, coarsely and in a second or two.

Says two things before anything is built on a mask: whether the mask has the shape of a brain, and how far the head is
turned away from upright, the only position that networks for brain extraction know well.
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
"""Scalp, skull and air around the brain in an upright copy; a neck only misleads."""


@dataclass(frozen=True, eq=False)
class TemplateFit:
    """The template's brain as it lies in a scan.

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
        """The affine without its shift, scale and shear, (3, 3)."""
        return np.asarray(linalg.polar(self.affine[:3, :3])[0])

    def tilt_degrees(self, grid: Grid) -> float:
        """The angle between the head and the axes of a grid that run towards right, anterior and superior."""
        axes = grid.affine[:3, :3] / grid.spacing_mm
        cosine = (np.trace(axes.T @ self.rotation) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def upright_grid(self, spacing_mm: float) -> Grid:
        """A grid around the head whose axes are the head's own, as those of the template."""
        template = load_template(_SPACING_MM)
        corners = _corners_mm(template.brain_mask)
        middle, half = corners.mean(0), np.ptp(corners, axis=0) / 2
        # A box that holds the stretched brain, but no shear: the head keeps its shape.
        half = np.abs(linalg.polar(self.affine[:3, :3], side="right")[1]) @ half
        low, high = middle - half - _ROOM_MM, middle + half + _ROOM_MM
        x, y, z = (int(n) for n in np.ceil((high - low) / spacing_mm) + 1)
        affine = np.eye(4)
        affine[:3, :3] = self.rotation * spacing_mm
        affine[:3, 3] = self.affine[:3, :3] @ middle + self.affine[:3, 3] + self.rotation @ (low - middle)
        return Grid((x, y, z), affine)


def fit_template(t1w: Volume, mask: Volume) -> TemplateFit:
    """Fit the template's brain to what a mask shows of a T1w: rigid, then affine, by correlation.

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
    # The step is chosen anew in millimetres each time: steps of a fixed rule threw one affine in eight off the brain.
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
        # Nothing of the two met: the overlap says so.
        pass
    return start


def _centre_mm(mask: Volume) -> np.ndarray:
    return mask.affine[:3, :3] @ np.argwhere(mask.voxels).mean(0) + mask.affine[:3, 3]


def _corners_mm(mask: Volume) -> np.ndarray:
    indices = np.argwhere(mask.voxels)
    return np.array([indices.min(0), indices.max(0)]) * mask.grid.spacing_mm + mask.affine[:3, 3]
