"""Bias field correction with N4.

The bias field is the smooth intensity inhomogeneity caused by the receive coil. N4 is Tustison et al., "N4ITK: improved
N3 bias correction", IEEE TMI 29 (2010).
"""

import numpy as np
import SimpleITK as sitk

from ...data_manifests.images.volume import Volume
from ..registration.resampling import to_itk
from ..settings import BiasFieldSettings

_SPLINE_MM = 200.0
"""Distance between the spline's control points at the coarsest level; halved at each further level."""
_LEVELS = 3
"""A fourth level (25 mm) follows the anatomy: it kept brightening the cerebellum's edge."""
_ITERATIONS_A_LEVEL = 50
_TOLERANCE = 1e-3
"""Convergence threshold of N4."""


def correct_bias_field(image: Volume, mask: Volume, settings: BiasFieldSettings) -> Volume:
    """Divide a scan by its bias field.

    The field is estimated from the voxels of the mask on a coarse copy, and evaluated as a spline on every voxel of
    the scan.

    Parameters
    ----------
    image : Volume
        float, non-negative.
    mask : Volume, bool
        On the grid of the image; must not be empty.
    settings : BiasFieldSettings

    Returns
    -------
    Volume
        float32, on the same grid. The geometric mean of the field inside the mask is 1, so brightness is preserved.
    """
    if not settings.enabled:
        return image
    positive = image.with_voxels(np.maximum(image.voxels, 0).astype(np.float32))
    coarse, coarse_mask = _coarse(positive, mask, settings.working_spacing_mm)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.SetConvergenceThreshold(_TOLERANCE)
    filter_.SetMaximumNumberOfIterations([_ITERATIONS_A_LEVEL] * _LEVELS)
    extent_mm = np.array(image.grid.size_vox) * image.grid.spacing_mm
    spans = np.maximum(np.ceil(extent_mm / _SPLINE_MM), 1).astype(int)
    filter_.SetNumberOfControlPoints([int(n) + 3 for n in spans])
    filter_.Execute(coarse, coarse_mask)
    log_field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(to_itk(positive))).transpose(2, 1, 0)
    log_field = log_field - log_field[mask.voxels].mean()
    return image.with_voxels((positive.voxels * np.exp(-log_field)).astype(np.float32))


def _coarse(image: Volume, mask: Volume, spacing_mm: float) -> tuple[sitk.Image, sitk.Image]:
    factors = [int(n) for n in np.maximum(np.round(spacing_mm / image.grid.spacing_mm), 1)]
    # Averages use only voxels of the brain, so that blocks partly outside it do not become dark.
    weight = mask.with_voxels(mask.voxels.astype(np.float32))
    inside = sitk.BinShrink(to_itk(weight), factors)
    total = sitk.BinShrink(to_itk(image.with_voxels(image.voxels * weight.voxels)), factors)
    mean = sitk.Divide(total, sitk.Maximum(inside, 1e-3))
    return mean, sitk.Cast(inside > 0.75, sitk.sitkUInt8)
