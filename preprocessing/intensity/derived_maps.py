"""Derived maps: local texture and tissue features computed from one standardised image.

Every map is in [0, 1] and 0 outside the subject's brain. All sizes are standard deviations of Gaussians, in
millimetres. Smoothing is a normalised convolution within the brain mask (Knutsson, Westin, "Normalized and differential
convolution", CVPR 1993), so that the border to the background has no effect. docs/derived-maps.md describes what each
map detects and which alternatives were evaluated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.special import ive

from ...data_manifests.images.volume import Volume
from ..convolution import convolved
from ..registration.template import load_template
from ..settings import DerivedMapName

Direction = Literal["higher", "lower", "both"]
"""Direction in which values of a channel are suspicious."""

_REACH = 3.0
"""Standard deviations at which a Gaussian is truncated."""
_LEAST_SHARE = 1e-4
"""Lower bound of the Gaussian's weight inside the brain, which avoids division by zero far from it."""
_TISSUE = 0.9
"""Smallest template probability of a grey-matter or white-matter voxel."""
_FEWEST_VOXELS = 50
_LEAST_CONTRAST = 0.05
_DARKEST, _BRIGHTEST = -0.6, 1.2
"""Clipping limits of `fineness`, in units of `Brain.tissue`; they exclude the strong edges of fluid and vessels."""
_NOISE = 0.045
"""Noise level in units of `Brain.tissue`; weaker patterns do not contribute to `fineness`."""


@dataclass(frozen=True)
class DerivedMap:
    """Definition of a derived map.

    Attributes
    ----------
    name : str
    suspicious : {"higher", "lower", "both"}
    compute : callable
        Function of a `Brain` that returns an array over its bounding box.
    """

    name: DerivedMapName
    suspicious: Direction
    compute: Callable[["Brain"], np.ndarray]


class Brain:
    """One image of one brain, cropped to its bounding box, with the operations that the maps share.

    Parameters
    ----------
    image : Volume
        Standardised image on the template grid: in [0, 1], 0 outside the brain.
    brain_mask : Volume, bool
        The subject's brain on the same grid.

    Attributes
    ----------
    voxels : ndarray, float32
        The image in the box.
    inside : ndarray of bool
        The mask in the box.
    """

    def __init__(self, image: Volume, brain_mask: Volume):
        self.image, self.brain_mask = image, brain_mask
        found = ndimage.find_objects(brain_mask.voxels.astype(np.uint8))
        self._box = found[0] if found else (slice(0, 1),) * 3
        self.inside = np.ascontiguousarray(brain_mask.voxels[self._box])
        self.voxels = np.ascontiguousarray(image.voxels[self._box], dtype=np.float32)
        self._share: dict[float, np.ndarray] = {}

    def derive(self, name: DerivedMapName) -> Volume:
        """Compute one map of `DERIVED_MAPS`; float32 in [0, 1], 0 outside the brain."""
        values = np.zeros(self.image.voxels.shape, np.float32)
        computed = np.clip(DERIVED_MAPS[name].compute(self), 0, 1)
        values[self._box] = np.where(self.inside, computed, 0)
        return self.image.with_voxels(values)

    @cached_property
    def tissue(self) -> np.ndarray:
        """The image scaled so that grey matter is 0 and white matter is 1, whichever is brighter."""
        grey, white = tissue_levels(self.image, self.brain_mask)
        return (self.voxels - grey) / np.float32(white - grey)

    def mean(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Gaussian-weighted mean of the values inside the brain; undefined outside the brain."""
        if sigma_mm not in self._share:
            self._share[sigma_mm] = self._blurred(np.ones_like(self.voxels), sigma_mm)
        share = self._share[sigma_mm]
        return self._blurred(values, sigma_mm) / np.maximum(share, _LEAST_SHARE)

    def energy(self, values: np.ndarray, blur_mm: float, sigma_mm: float) -> np.ndarray:
        """Local mean square of the detail that a blur removes from the values."""
        return self.mean((values - self.mean(values, blur_mm)) ** 2, sigma_mm)

    def _blurred(self, values: np.ndarray, sigma_mm: float) -> np.ndarray:
        kernels = [gaussian_weights(sigma_mm / spacing_mm) for spacing_mm in self.image.grid.spacing_mm]
        return convolved(np.where(self.inside, values, 0).astype(np.float32), kernels)


def gaussian_weights(sigma_vox: float) -> np.ndarray:
    """Weights of the discrete Gaussian, exp(-t) I_n(t) with t = sigma^2 (Lindeberg, IEEE PAMI 12, 1990).

    Its variance is t on every grid. A Gaussian sampled at voxel centres has a smaller variance if it is narrower than a
    voxel, and hardly blurs at a width of half a voxel.
    """
    reach = int(np.ceil(_REACH * sigma_vox + 0.5))
    weights = ive(np.arange(-reach, reach + 1), sigma_vox**2)
    return weights / weights.sum()


def tissue_levels(image: Volume, brain_mask: Volume) -> tuple[float, float]:
    """Median intensities in the template's grey matter and in its white matter.

    Medians are robust to lesions in up to half of a tissue. If the two are nearly equal, as in a constant brain, a
    minimum contrast is used.
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
    """Share of the neighbourhood with intensities between grey and white matter.

    The band between the two, here with soft edges, widens at a blurred border: the junction image of Huppertz
    et al., "Enhanced visualization of blurred gray-white matter junctions in focal cortical dysplasia by voxel-based 3D
    MRI analysis", Epilepsy Research 67, 2005.
    """
    return brain.mean(np.exp(-8 * (brain.tissue - 0.5) ** 2), 3.0)


def _extension(brain: Brain) -> np.ndarray:
    """Share of the neighbourhood with intensities of grey matter.

    The extension image detects grey matter at unusual places (Huppertz et al., "Voxel-based 3D MRI analysis helps to
    detect subtle forms of subcortical band heterotopia", Epilepsia 49, 2008). A thick cortex and white matter as dark
    as grey matter give high values too.
    """
    return brain.mean(np.exp(-2 * brain.tissue**2), 3.0)


def _detail(brain: Brain) -> np.ndarray:
    """Strength of fine texture: 5 times the root mean square of the detail that a blur of 1 mm removes."""
    return 5 * np.sqrt(brain.energy(brain.voxels, 1.0, 2.0))


def _fineness(brain: Brain) -> np.ndarray:
    """Fineness of texture, independent of its strength: detail removed by a 1 mm blur relative to a 2 mm blur."""
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
