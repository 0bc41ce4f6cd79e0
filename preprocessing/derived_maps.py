"""Maps computed from one image: what a small patch shows that a brain's intensity at one voxel does not.

Every map is in [0, 1], 0 outside the subject's brain, and reads an image on the cohort's scale of intensities. Its
sizes are in millimetres. Smoothing is a normalised convolution within the brain mask (Knutsson, Westin, "Normalized and
differential convolution", CVPR 1993): the border to the background is no detail.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ..data_manifests.volume import Volume
from .settings import DerivedMapName
from .template import load_template

Direction = Literal["higher", "lower", "both"]
"""Which values of a channel are suspicious."""

_REACH = 3.0
"""Standard deviations at which a Gaussian ends."""
_TISSUE = 0.9
_FEWEST_VOXELS = 50
_LEAST_CONTRAST = 0.05


@dataclass(frozen=True)
class DerivedMap:
    """How a map is made, and which way it points.

    Attributes
    ----------
    name : str
    suspicious : {"higher", "lower", "both"}
    compute : callable
        Of the image's voxels and a `Smoother` of its brain: values about 0 to 1.
    """

    name: DerivedMapName
    suspicious: Direction
    compute: Callable[[Volume, "Smoother"], np.ndarray]


class Smoother:
    """Gaussian means within a brain.

    Parameters
    ----------
    brain_mask : Volume, bool
    """

    def __init__(self, brain_mask: Volume):
        self.brain_mask = brain_mask
        self._inside = brain_mask.voxels.astype(np.float32)
        self._share: dict[float, np.ndarray] = {}

    def mean(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Weighted mean of the brain's values around each voxel, (X, Y, Z) float32.

        Outside the brain it goes on as far as the Gaussian reaches, so that its slope is 0 across the border, and is 0
        from there on.
        """
        if sigma_mm not in self._share:
            self._share[sigma_mm] = self._blurred(self._inside, sigma_mm)
        share = self._share[sigma_mm]
        blurred = self._blurred(values * self._inside, sigma_mm)
        return np.divide(blurred, share, out=np.zeros_like(blurred), where=share > 1e-4)

    def _blurred(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        sigma_vox = sigma_mm / self.brain_mask.grid.spacing_mm
        return ndimage.gaussian_filter(values.astype(np.float32), sigma_vox, mode="constant", truncate=_REACH)


def derive(name: DerivedMapName, image: Volume, brain_mask: Volume) -> Volume:
    """Compute one map.

    Parameters
    ----------
    name : str
        One of `DERIVED_MAPS`.
    image : Volume
        On the template grid and the cohort's scale of intensities: in [0, 1], 0 outside the brain.
    brain_mask : Volume, bool
        The subject's brain on the same grid.

    Returns
    -------
    Volume
        float32 in [0, 1], 0 outside the mask.
    """
    values = DERIVED_MAPS[name].compute(image, Smoother(brain_mask))
    return image.with_voxels(np.where(brain_mask.voxels, np.clip(values, 0, 1), 0).astype(np.float32))


def _junction(image: Volume, smoother: Smoother) -> np.ndarray:
    grey, white = tissue_levels(image, smoother.brain_mask)
    distance = (image.voxels - (grey + white) / 2) / ((white - grey) / 4)
    return smoother.mean(np.exp(-(distance**2) / 2), 2.0)


def _detail(image: Volume, smoother: Smoother) -> np.ndarray:
    coarse = smoother.mean(image.voxels, 1.5)
    return 5 * np.sqrt(smoother.mean((image.voxels - coarse) ** 2, 3.0))


def tissue_levels(image: Volume, brain_mask: Volume) -> tuple[float, float]:
    """Median intensity where the template has grey, and where it has white matter.

    Half of either tissue may be sick before a median leaves what is healthy. Without contrast between the two, as in
    a constant brain, they are taken as a least step apart.
    """
    template = load_template(float(image.grid.spacing_mm[0]))
    found = []
    for tissue in (template.grey, template.white):
        values = image.voxels[brain_mask.voxels & (tissue.voxels >= _TISSUE)]
        found.append(float(np.median(values)) if values.size >= _FEWEST_VOXELS else 0.5)
    grey, white = found
    if abs(white - grey) < _LEAST_CONTRAST:
        white = grey + _LEAST_CONTRAST
    return grey, white


DERIVED_MAPS: Mapping[DerivedMapName, DerivedMap] = {
    one.name: one for one in (DerivedMap("junction", "higher", _junction), DerivedMap("detail", "higher", _detail))
}
