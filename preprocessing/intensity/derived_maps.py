"""Maps computed from one image: what a neighbourhood shows that the intensity of one voxel does not.

Every map is in [0, 1], 0 outside the subject's brain, and reads an image on the cohort's scale of intensities. All
sizes are standard deviations of Gaussians, in millimetres. Smoothing is a normalised convolution within the brain mask
(Knutsson, Westin, "Normalized and differential convolution", CVPR 1993): the border to the background is no detail,
and tissue beside it counts in full. docs/derived-maps.md says what each map sees, and which others were tried.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.special import ive

from ...data_manifests.images.volume import Volume
from ..registration.template import load_template
from ..settings import DerivedMapName

Direction = Literal["higher", "lower", "both"]
"""Which values of a channel are suspicious."""

_REACH = 3.0
"""Standard deviations at which a Gaussian ends."""
_LEAST_SHARE = 1e-4
"""Of a Gaussian's weight inside the brain: with less, there is nothing near to take a mean of."""
_TISSUE = 0.9
"""Template probability from which on a voxel is taken as grey or as white matter."""
_FEWEST_VOXELS = 50
_LEAST_CONTRAST = 0.05
_DARKEST, _BRIGHTEST = -0.6, 1.2
"""In units of tissue: how far beyond grey and white matter a pattern counts. Fluid and vessels are strong patterns."""
_NOISE = 0.045
"""In units of tissue: weaker patterns are neither fine nor coarse."""


@dataclass(frozen=True)
class DerivedMap:
    """How a map is made, and which way it points.

    Attributes
    ----------
    name : str
    suspicious : {"higher", "lower", "both"}
    compute : callable
        From a `Brain` to an array over its box.
    """

    name: DerivedMapName
    suspicious: Direction
    compute: Callable[["Brain"], np.ndarray]


class Brain:
    """One image of one brain, cut to the box around it, and what several maps need of it.

    Parameters
    ----------
    image : Volume
        On the template grid and the cohort's scale of intensities: in [0, 1], 0 outside the brain.
    brain_mask : Volume, bool
        The subject's brain on the same grid.

    Attributes
    ----------
    voxels : ndarray, float32
        The image over the box.
    inside : ndarray of bool
        The mask over the box.
    """

    def __init__(self, image: Volume, brain_mask: Volume):
        self.image, self.brain_mask = image, brain_mask
        found = ndimage.find_objects(brain_mask.voxels.astype(np.uint8))
        self._box = found[0] if found else (slice(0, 1),) * 3
        self.inside = np.ascontiguousarray(brain_mask.voxels[self._box])
        self.voxels = np.ascontiguousarray(image.voxels[self._box], dtype=np.float32)
        self._share: dict[float, np.ndarray] = {}

    def derive(self, name: DerivedMapName) -> Volume:
        """Compute one map of `DERIVED_MAPS`: float32 in [0, 1], 0 outside the brain."""
        values = np.zeros(self.image.voxels.shape, np.float32)
        computed = np.clip(DERIVED_MAPS[name].compute(self), 0, 1)
        values[self._box] = np.where(self.inside, computed, 0)
        return self.image.with_voxels(values)

    @cached_property
    def tissue(self) -> np.ndarray:
        """The image in units of its own tissue: 0 is grey matter and 1 white matter, whichever is the brighter."""
        grey, white = tissue_levels(self.image, self.brain_mask)
        return (self.voxels - grey) / np.float32(white - grey)

    def mean(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Weighted mean of the brain's values around each voxel; outside the brain, of no meaning."""
        if sigma_mm not in self._share:
            self._share[sigma_mm] = self._blurred(np.ones_like(self.voxels), sigma_mm)
        share = self._share[sigma_mm]
        return self._blurred(values, sigma_mm) / np.maximum(share, _LEAST_SHARE)

    def energy(self, values: np.ndarray, blur_mm: float, sigma_mm: float) -> np.ndarray:
        """Mean square of what a blur takes away from the values."""
        return self.mean((values - self.mean(values, blur_mm)) ** 2, sigma_mm)

    def _blurred(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        blurred = np.where(self.inside, values, 0).astype(np.float32)
        for axis, spacing_mm in enumerate(self.image.grid.spacing_mm):
            blurred = ndimage.correlate1d(blurred, gaussian_weights(sigma_mm / spacing_mm), axis, mode="constant")
        return blurred


def gaussian_weights(sigma_vox: float) -> np.ndarray:
    """The discrete Gaussian, exp(-t) I_n(t) with t = sigma^2 (Lindeberg, IEEE PAMI 12, 1990).

    Its variance is t on every grid. A Gaussian sampled at the voxels' centres has less where it is narrower than a
    voxel, and at half a voxel's width blurs next to nothing.
    """
    reach = int(np.ceil(_REACH * sigma_vox + 0.5))
    weights = ive(np.arange(-reach, reach + 1), sigma_vox**2)
    return weights / weights.sum()


def tissue_levels(image: Volume, brain_mask: Volume) -> tuple[float, float]:
    """Median intensity where the template has grey, and where it has white matter.

    Half of either tissue may be sick before a median leaves what is healthy. Where the two are as good as alike, as in
    a constant brain, they are taken as a least step apart.
    """
    template = load_template(float(image.grid.spacing_mm[0]))
    found = []
    for tissue in (template.grey, template.white):
        values = image.voxels[brain_mask.voxels & (tissue.voxels >= _TISSUE)]
        found.append(float(np.median(values)) if values.size >= _FEWEST_VOXELS else 0.5)
    grey, white = found
    contrast = white - grey
    return grey, grey + float(np.copysign(max(abs(contrast), _LEAST_CONTRAST), contrast))


def _junction(brain: Brain) -> np.ndarray:
    """How much of the neighbourhood is neither grey nor white matter but between them.

    The band between the two, here with soft edges, widens where the border is blurred: the junction image of Huppertz
    et al., "Enhanced visualization of blurred gray-white matter junctions in focal cortical dysplasia by voxel-based 3D
    MRI analysis", Epilepsy Research 67, 2005.
    """
    return brain.mean(np.exp(-8 * (brain.tissue - 0.5) ** 2), 3.0)


def _extension(brain: Brain) -> np.ndarray:
    """How much of the neighbourhood looks like grey matter.

    Grey matter where white matter belongs is what the extension image looks for (Huppertz et al., "Voxel-based 3D MRI
    analysis helps to detect subtle forms of subcortical band heterotopia", Epilepsia 49, 2008); a thick cortex and
    white matter as dark as grey show alike.
    """
    return brain.mean(np.exp(-2 * brain.tissue**2), 3.0)


def _detail(brain: Brain) -> np.ndarray:
    """How strong the finest pattern is: root mean square of what a blur of 1 mm takes away, times 5."""
    return 5 * np.sqrt(brain.energy(brain.voxels, 1.0, 2.0))


def _fineness(brain: Brain) -> np.ndarray:
    """How fine the pattern is, whatever its strength: what a blur of 1 mm takes away against what one of 2 mm does."""
    pattern = np.clip(brain.tissue, _DARKEST, _BRIGHTEST)
    return np.sqrt(brain.energy(pattern, 1.0, 3.0) / (brain.energy(pattern, 2.0, 3.0) + _NOISE**2))


DERIVED_MAPS: Mapping[DerivedMapName, DerivedMap] = {
    one.name: one
    for one in (
        DerivedMap("junction", "higher", _junction),
        DerivedMap("extension", "higher", _extension),
        DerivedMap("detail", "higher", _detail),
        DerivedMap("fineness", "higher", _fineness),
    )
}
