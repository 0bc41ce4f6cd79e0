"""Rigid alignment of another image of the same session with the T1w.

The metric is mutual information (Mattes et al., "PET-CT image registration in the chest using free-form deformations",
IEEE TMI 22, 2003). The image is not interpolated here: the transform is combined with the one to the template.
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
"""Accuracy of the search: if it moves the image by less than this, the headers are kept."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Rigid transform from the T1w to another image.

    Attributes
    ----------
    transform : SimpleITK.Transform
        Maps points of the T1w to points of the image (LPS mm).
    shift_mm : float
        Error of the headers at the centre of the brain.
    information : float or None
        Mutual information of the two images in and near the brain, in nats: about 0.3 for a T1w and its FLAIR, below
        0.1 for images that are not aligned. None without a search.
    """

    transform: sitk.Transform
    shift_mm: float
    information: float | None

    def save(self, path: Path) -> Path:
        """Write the alignment as JSON, atomically."""
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
        """Load an alignment that `save` wrote.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        try:
            content = load_json(path)
            transform = itk_affine(np.array(content["t1w_to_image_ras_mm"], dtype=np.float64))
            return cls(transform, content["shift_mm"], content["information"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{private(path)}: holds no valid alignment with the T1w. Run prepare for the subject again."
            ) from error


UNMOVED = Alignment(sitk.Transform(3, sitk.sitkIdentity), 0.0, None)


def align_to_t1w(image: Volume, t1w: Volume, brain_mask: Volume, *, seed: int) -> Alignment:
    """Align an image with the T1w of the same session.

    A coarse search starts from the headers and from the centres of mass at several heights (an image may end at the
    chin or at the shoulders); the best result is refined. The headers are correct in most exports and useless in some.
    Images on the same grid are not necessarily aligned, as they may have been resampled without alignment. If the
    search ends within half a millimetre of the headers, the headers are kept.

    Parameters
    ----------
    image, t1w : Volume
    brain_mask : Volume, bool
        On the grid of `t1w`. The metric uses voxels in and near the brain, as necks and jaws move between scans.
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
    """Limit SimpleITK to one thread in a block."""
    # The metric follows only the global number of threads; with several threads, sums are not bit-identical.
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
    """Optimise `start` in place; return minus the mutual information reached, and the transform."""
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
        # The images do not overlap at the start.
        return np.inf, start
    return method.GetMetricValue(), start
