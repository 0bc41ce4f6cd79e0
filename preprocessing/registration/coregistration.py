"""Where another image of the same session lies relative to the T1w.

Rigid, by mutual information (Mattes et al., "PET-CT image registration in the chest using free-form deformations",
IEEE TMI 22, 2003). The image itself is not interpolated here: the transform joins the one to the template.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume
from ...data_manifests.typed_json import load_json
from .resampling import LPS, itk_affine, ras_affine, to_itk

_LEVELS_MM = (8.0, 4.0, 2.0)
_HEIGHTS_MM = (-50.0, -25.0, 0.0, 25.0, 50.0)
_HEADERS_AGREE_MM = 0.5
"""What the search itself wanders by: a header that it would move by less is right."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid step from the T1w to another image.

    Attributes
    ----------
    transform : SimpleITK.Transform
        Points of the T1w to points of the image (LPS mm).
    shift_mm : float
        How far the headers were wrong at the centre of the brain.
    information : float or None
        Mutual information of the two in and near the brain, nats; about 0.3 for a T1w and its FLAIR, below 0.1 for two
        that were not aligned. None where nothing was searched.
    """

    transform: sitk.Transform
    shift_mm: float
    information: float | None

    def save(self, path: Path) -> Path:
        """Write JSON, whole or not at all."""
        content = {
            "t1w_to_image_ras_mm": ras_affine(self.transform).tolist(),
            "shift_mm": self.shift_mm,
            "information": self.information,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> "Alignment":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        try:
            content = load_json(path)
            transform = itk_affine(np.array(content["t1w_to_image_ras_mm"], dtype=np.float64))
            return cls(transform, content["shift_mm"], content["information"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{private(path)}: holds no alignment with the T1w. Run prepare for the subject again."
            ) from error


UNMOVED = Alignment(sitk.Transform(3, sitk.sitkIdentity), 0.0, None)


def align_to_t1w(image: Volume, t1w: Volume, brain_mask: Volume, *, seed: int) -> Alignment:
    """Align an image with the T1w of the same session.

    The search starts coarsely from the headers and from the two centres of mass at several heights (an image may end
    at the chin or at the shoulders), and goes on from the best: headers are right in most exports and useless in some.
    Even one grid proves nothing: images are resampled onto others before they are aligned. Where the search ends
    within half a millimetre of the headers, the headers are kept.

    Parameters
    ----------
    image, t1w : Volume
    brain_mask : Volume, bool
        On the grid of `t1w`. The match is judged in and near the brain: necks and jaws move between scans.
    seed : int
    """
    reach = int(np.ceil(10 / t1w.grid.spacing_mm.min()))
    near_brain = t1w.with_voxels(ndimage.binary_dilation(brain_mask.voxels, iterations=reach))
    fixed, fixed_mask, moving = to_itk(t1w), to_itk(near_brain), to_itk(image)
    centre = _centre_of_mass(brain_mask.with_voxels(brain_mask.voxels.astype(np.float32)))
    towards_image = _centre_of_mass(image) - centre
    shifts = [np.zeros(3), *(towards_image + np.array([0, 0, height]) for height in _HEIGHTS_MM)]
    ends = []
    for shift in shifts:
        start = sitk.Euler3DTransform()
        start.SetCenter(centre.tolist())
        start.SetTranslation(shift.tolist())
        ends.append(_descend(fixed, fixed_mask, moving, start, _LEVELS_MM[:1], seed))
    _, best = min(ends, key=lambda end: end[0])
    cost, best = _descend(fixed, fixed_mask, moving, best, _LEVELS_MM[1:], seed)
    information = max(0.0, -cost) if np.isfinite(cost) else 0.0
    if _mean_move_mm(best, brain_mask) < _HEADERS_AGREE_MM:
        return Alignment(UNMOVED.transform, 0.0, information)
    shift_mm = float(np.linalg.norm(np.array(best.TransformPoint(centre.tolist())) - centre))
    return Alignment(best, shift_mm, information)


def _centre_of_mass(volume: Volume) -> np.ndarray:
    index = ndimage.center_of_mass(np.maximum(volume.voxels, 0))
    return LPS @ (volume.affine[:3, :3] @ index + volume.affine[:3, 3])


def _mean_move_mm(transform: sitk.Transform, mask: Volume) -> float:
    indices = np.argwhere(mask.voxels)[::997]
    points = (indices @ mask.affine[:3, :3].T + mask.affine[:3, 3]) @ LPS
    return float(np.linalg.norm([np.array(transform.TransformPoint(p.tolist())) - p for p in points], axis=1).mean())


@contextmanager
def one_thread() -> Iterator[None]:
    # The metric inside the method follows the process's number alone, and sums of several threads differ in a bit.
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _descend(
    fixed: sitk.Image,
    fixed_mask: sitk.Image,
    moving: sitk.Image,
    start: sitk.Euler3DTransform,
    levels_mm: Sequence[float],
    seed: int,
) -> tuple[float, sitk.Euler3DTransform]:
    """Minus the mutual information at the end, and the end; `start` is moved there."""
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
    method.SetShrinkFactorsPerLevel([max(1, round(mm / spacing)) for mm in levels_mm])
    method.SetSmoothingSigmasPerLevel([mm / 2 if mm > _LEVELS_MM[-1] else 0.0 for mm in levels_mm])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(start, inPlace=True)
    try:
        with one_thread():
            method.Execute(fixed, moving)
    except RuntimeError:
        # The start lay so far off that no sample met the image.
        return np.inf, start
    return method.GetMetricValue(), start
