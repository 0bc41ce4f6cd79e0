"""Quality measures of a prepared subject."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from ..registration.template import Template

if TYPE_CHECKING:
    from ..registration.template_transform import TemplateTransform

_TISSUE = 0.8
"""Smallest template probability of a tissue for a voxel to count as that tissue."""

LABELS = {
    "brain_ml": "Brain, ml",
    "brain_overlap": "Brain overlap",
    "coverage": "Coverage",
    "similarity_before": "Similarity, affine",
    "similarity_after": "Similarity",
    "white_matter_overlap_before": "White matter, affine",
    "white_matter_overlap": "White matter",
    "jacobian_smallest": "Jacobian, smallest",
    "jacobian_percentile_1": "Jacobian, 1 %",
    "jacobian_percentile_99": "Jacobian, 99 %",
    "noise": "Noise",
    "dark_share": "Dark share",
}
"""Short label of each number, in the order of the tables."""


@dataclass(frozen=True)
class QualityNumbers:
    """Quality numbers of one prepared subject; NaN if a number could not be computed.

    Attributes
    ----------
    brain_ml : float
        Volume of the brain mask in native space.
    brain_overlap : float
        Dice of the warped brain mask with the template's; higher is better.
    coverage : float
        Share of the template's brain inside the warped brain mask; higher is better.
    similarity_before, similarity_after : float
        Correlation of the T1w with the template's T1w inside the template's brain, after the affine and after the
        warp; higher is better.
    white_matter_overlap_before, white_matter_overlap : float
        Dice of the warped bright tissue (Otsu's upper of three classes) with the template's white matter, after the
        affine and after the warp.
    jacobian_smallest, jacobian_percentile_1, jacobian_percentile_99 : float
        Local volume change by the warp inside the template's brain: 1 is no change, values of 0 or less mean folding.
    noise : float
        Standard deviation of the noise over the mean intensity, in white matter: the median absolute second
        difference along the axes, scaled for Gaussian noise. Lower is better.
    dark_share : float
        Share of the brain mask darker than a tenth of the brain's median: background or bone inside the mask.
    """

    brain_ml: float
    brain_overlap: float
    coverage: float
    similarity_before: float
    similarity_after: float
    white_matter_overlap_before: float
    white_matter_overlap: float
    jacobian_smallest: float
    jacobian_percentile_1: float
    jacobian_percentile_99: float
    noise: float
    dark_share: float


def measure(t1w: Volume, brain_mask: Volume, transform: "TemplateTransform", template: Template) -> QualityNumbers:
    """Compute the quality numbers of a brain mask and a registration.

    Parameters
    ----------
    t1w : Volume
        Native, bias-corrected.
    brain_mask : Volume, bool
        On the grid of `t1w`.
    transform : TemplateTransform
    template : Template
        Template at the resolution of the measurement.
    """
    mask = brain_mask.voxels
    masked = t1w.with_voxels(np.where(mask, t1w.voxels, 0).astype(np.float32))
    white = _bright_tissue(t1w, mask)
    target = template.brain_mask.voxels
    warped_mask = transform.to_template(brain_mask, template.grid, interpolation="linear").voxels
    similarity, white_overlap = [], []
    for step in (transform.affine_only(), transform):
        warped = step.to_template(masked, template.grid, interpolation="linear").voxels
        similarity.append(_correlation(warped[target], template.t1w.voxels[target]))
        warped_white = step.to_template(t1w.with_voxels(white), template.grid, interpolation="linear").voxels
        white_overlap.append(_dice(warped_white, template.white.voxels >= 0.5))
    jacobian = transform.jacobian_range
    return QualityNumbers(
        brain_ml=float(mask.sum() * t1w.grid.voxel_volume_mm3 / 1000),
        brain_overlap=_dice(warped_mask, target),
        coverage=float((warped_mask & target).sum() / target.sum()),
        similarity_before=similarity[0],
        similarity_after=similarity[1],
        white_matter_overlap_before=white_overlap[0],
        white_matter_overlap=white_overlap[1],
        jacobian_smallest=jacobian.smallest,
        jacobian_percentile_1=jacobian.percentile_1,
        jacobian_percentile_99=jacobian.percentile_99,
        noise=_noise(t1w.voxels, white),
        dark_share=float((t1w.voxels[mask] < 0.1 * np.median(t1w.voxels[mask])).mean()),
    )


def white_to_grey(warped: np.ndarray, template: Template) -> float:
    """White-matter to grey-matter intensity ratio of an image (X, Y, Z) on the template's grid; NaN if not covered."""
    white, grey = (warped[(tissue.voxels >= _TISSUE) & (warped > 0)] for tissue in (template.white, template.grey))
    return float(np.median(white) / np.median(grey)) if len(white) and len(grey) else float("nan")


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def _correlation(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.corrcoef(values, reference)[0, 1]) if values.std() > 0 else 0.0


def _bright_tissue(t1w: Volume, mask: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_multiotsu

    inside = t1w.voxels[mask]
    inside = np.clip(inside, *np.percentile(inside, [0.5, 99.5]))
    if len(np.unique(inside)) < 3:
        return np.zeros(mask.shape, bool)
    return mask & (t1w.voxels > threshold_multiotsu(inside, classes=3)[1])


def _noise(voxels: np.ndarray, white: np.ndarray) -> float:
    core = np.asarray(ndimage.binary_erosion(white), bool)
    if not core.any():
        return float("nan")
    differences = [(np.roll(voxels, 1, axis) - 2 * voxels + np.roll(voxels, -1, axis))[core] for axis in range(3)]
    # The second difference of white noise has 6 times its variance; 1.4826 converts a median deviation to an SD.
    deviation = 1.4826 * np.median(np.abs(np.concatenate(differences))) / np.sqrt(6)
    return float(deviation / voxels[core].mean())
