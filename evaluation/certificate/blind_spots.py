"""Map of the smallest lesion that is found at each place of the brain: where it is large, the model is blind."""

import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from .detection_curve import DetectionCurve, shifts

REACH_MM = 10.0
"""Standard deviation of the Gaussian over which lesions count for a place."""
_STEP_MM = 6.0
_AT_ONCE = 500


def blind_spot_map(
    inside: Volume,
    places_mm: np.ndarray,
    logits: np.ndarray,
    found: np.ndarray,
    curve: DetectionCurve,
    strength: float,
    *,
    share: float = 0.5,
) -> Volume:
    """Compute the size of which a share of lesions is found at each place.

    Parameters
    ----------
    inside : Volume of bool
        Voxels that the model scores.
    places_mm : ndarray, (N, 3)
        Centres of the lesions of all kinds, since they show where scores are reliable.
    logits : ndarray, (N,)
        Of the curves of their kinds.
    found : ndarray of bool, (N,)
    curve : DetectionCurve
        Of the kind that the sizes are given for.
    strength : float
    share : float

    Returns
    -------
    Volume
        In ml, float32, within the range that was painted; 0 outside.
    """
    step = max(1, round(_STEP_MM / float(inside.grid.spacing_mm.max())))
    size = tuple(-(-n // step) + 1 for n in inside.voxels.shape)
    index = np.indices(size).reshape(3, -1).T * step
    points = index @ inside.affine[:3, :3].T + inside.affine[:3, 3]
    shift = np.zeros(len(points))
    needed = np.flatnonzero(_is_near(inside.voxels, index, step))
    for first in range(0, len(needed), _AT_ONCE):
        rows = needed[first : first + _AT_ONCE]
        distance2 = ((points[rows, None] - places_mm[None]) ** 2).sum(axis=2)
        shift[rows] = shifts(logits, found, np.exp(-0.5 * distance2 / REACH_MM**2))
    return _at_voxels(shift.reshape(size), step, inside, curve, strength, share)


def _is_near(inside: np.ndarray, index: np.ndarray, step: int) -> np.ndarray:
    """Whether each point of the coarse grid, (V, 3), is needed for a voxel inside."""
    wide = ndimage.maximum_filter(np.pad(inside, step), size=2 * step + 1)
    return wide[tuple(np.minimum(index + step, np.array(wide.shape) - 1).T)]


def _at_voxels(
    coarse: np.ndarray, step: int, inside: Volume, curve: DetectionCurve, strength: float, share: float
) -> Volume:
    shape = inside.voxels.shape
    shift = ndimage.affine_transform(coarse, np.diag([1 / step] * 3), output_shape=shape, order=1, mode="nearest")
    own = DetectionCurve(curve.usual, curve.coefficients[:1], curve.smallest_ml, curve.largest_ml, 0, 0)
    sizes = np.clip(own.limits_ml(share, strength, shift.ravel()), own.smallest_ml, own.largest_ml).reshape(shape)
    return inside.with_voxels(np.where(inside.voxels, sizes, 0).astype(np.float32))
