"""Where another image of the same session lies relative to the T1w.

Rigid, by mutual information (Mattes et al., "PET-CT image registration in the chest using free-form deformations",
IEEE TMI 22, 2003). The image itself is not interpolated here: the transform joins the one to the template.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..data_manifests.volume import Volume
from .resampling import to_itk

_SPACING_MM = 2.0


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid step from the T1w to another image.

    Attributes
    ----------
    transform : SimpleITK.Transform
        Points of the T1w to points of the image (LPS mm).
    shift_mm : float
        How far the headers were wrong at the centre of the brain.
    turn_degrees : float
    """

    transform: sitk.Transform
    shift_mm: float
    turn_degrees: float


UNMOVED = Alignment(sitk.Transform(3, sitk.sitkIdentity), 0.0, 0.0)


def align_to_t1w(image: Volume, t1w: Volume, brain_mask: Volume, *, seed: int) -> Alignment:
    """Align an image with the T1w of the same session.

    Images on the very grid of the T1w are taken as aligned. Otherwise the search starts twice, from the headers and
    from the centres of mass, and keeps the better end: headers are right in most exports and useless in some.

    Parameters
    ----------
    image, t1w : Volume
    brain_mask : Volume, bool
        On the grid of `t1w`. The match is judged in and near the brain: necks and jaws move between scans.
    seed : int
    """
    if image.grid.same_as(t1w.grid):
        return UNMOVED
    reach = int(np.ceil(10 / t1w.grid.spacing_mm.min()))
    near_brain = t1w.with_voxels(ndimage.binary_dilation(brain_mask.voxels, iterations=reach))
    fixed, fixed_mask, moving = to_itk(t1w), to_itk(near_brain), to_itk(image)
    centre = _centre_of_mass(brain_mask.with_voxels(brain_mask.voxels.astype(np.float32)))
    ends = [
        _descend(fixed, fixed_mask, moving, centre, start, seed)
        for start in (np.zeros(3), _centre_of_mass(image) - _centre_of_mass(t1w))
    ]
    _, best = min(ends, key=lambda end: end[0])
    shift_mm = float(np.linalg.norm(np.array(best.TransformPoint(centre.tolist())) - centre))
    cosine = (np.trace(np.array(best.GetMatrix()).reshape(3, 3)) - 1) / 2
    return Alignment(best, shift_mm, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def _centre_of_mass(volume: Volume) -> np.ndarray:
    index = ndimage.center_of_mass(np.maximum(volume.voxels, 0))
    return np.diag([-1.0, -1.0, 1.0]) @ (volume.affine[:3, :3] @ index + volume.affine[:3, 3])


@contextmanager
def _one_thread() -> Iterator[None]:
    # The metric inside the method follows the process's number alone, and sums of several threads differ in a bit.
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _descend(
    fixed: sitk.Image, fixed_mask: sitk.Image, moving: sitk.Image, centre: np.ndarray, shift: np.ndarray, seed: int
) -> tuple[float, sitk.Euler3DTransform]:
    start = sitk.Euler3DTransform()
    start.SetCenter(centre.tolist())
    start.SetTranslation(shift.tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, seed % 2**31 or 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=150, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    spacing = min(fixed.GetSpacing())
    method.SetShrinkFactorsPerLevel([max(1, round(mm / spacing)) for mm in (8.0, 4.0, _SPACING_MM)])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(start, inPlace=True)
    try:
        with _one_thread():
            method.Execute(fixed, moving)
    except RuntimeError:
        # The start lay so far off that no sample met the image.
        return np.inf, start
    return method.GetMetricValue(), start
