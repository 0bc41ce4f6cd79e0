"""Effects of simulated lesions on a scan: intensity shift, blur, texture, and swelling or thinning.

Intensity shifts favour methods based on intensities. Focal cortical dysplasia often keeps the intensity but blurs the
border between grey and white matter or thickens the cortex (Blumcke et al., Epilepsia 52, 2011). Methods for small
lesions without intensity change must therefore be tested on these effects too.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from scipy import ndimage

from ..images.volume import Volume


class Effect(Protocol):
    """Change of a scan by a lesion."""

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """Return the voxels with the lesion, (X, Y, Z) float32.

        Parameters
        ----------
        image : Volume
        alpha : ndarray, (X, Y, Z), float32
            Weight of the effect in each voxel, from 0 (none) to 1 (full).
        """
        ...


@dataclass(frozen=True)
class Shift:
    """Intensity shift. The result is not below 0 where the scan was not.

    Attributes
    ----------
    change : float
        Added intensity in the units of the scan; negative = darker.
    """

    change: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """Return the voxels with the shift added, (X, Y, Z) float32."""
        old = image.voxels.astype(np.float32)
        return _not_below_zero(old + np.float32(self.change) * alpha, old)


@dataclass(frozen=True)
class Blur:
    """Smoothing: the border between grey and white matter blurs, the mean intensity is kept.

    Attributes
    ----------
    sigma_mm : float
        Standard deviation of the Gaussian.
    """

    sigma_mm: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """Return the voxels blended with their smoothed copy, (X, Y, Z) float32."""
        old = image.voxels.astype(np.float32)
        smooth = ndimage.gaussian_filter(old, self.sigma_mm / image.grid.spacing_mm)
        return old + alpha * (smooth - old)


@dataclass(frozen=True)
class Texture:
    """Random pattern added without changing the mean of the lesion.

    Attributes
    ----------
    amplitude : float
        Standard deviation of the pattern inside the lesion, in the units of the scan.
    grain_mm : float
        Standard deviation of the Gaussian that smooths the pattern; 0 for independent voxels.
    seed : int
    """

    amplitude: float
    grain_mm: float
    seed: int

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """Return the voxels with the pattern added, (X, Y, Z) float32."""
        old = image.voxels.astype(np.float32)
        noise = np.random.default_rng(self.seed).standard_normal(old.shape)
        noise = ndimage.gaussian_filter(noise, self.grain_mm / image.grid.spacing_mm)
        inside = alpha >= 0.5
        noise -= np.average(noise, weights=alpha)
        noise /= max(float(noise[inside].std()) if inside.any() else 0.0, 1e-12)
        return _not_below_zero(old + np.float32(self.amplitude) * alpha * noise.astype(np.float32), old)


@dataclass(frozen=True)
class Swelling:
    """Displacement of tissue away from the centre of each part of the lesion, or towards it.

    Attributes
    ----------
    growth : float
        Relative growth of the centre along each axis: 0.3 = 30 %; negative = thinner.
    """

    growth: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """Return the voxels with the tissue displaced, (X, Y, Z) float32."""
        old = image.voxels.astype(np.float32)
        new = old.copy()
        parts, _ = cast(tuple[np.ndarray, int], ndimage.label(alpha > 0, structure=np.ones((3, 3, 3))))
        # Backward mapping: the source of a voxel is closer to the centre if the tissue moves outwards.
        share = self.growth / (1 + self.growth)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            weights = np.where(parts[box] == number, alpha[box], 0)
            places = np.indices(weights.shape) + np.array([side.start for side in box])[:, None, None, None]
            middle = np.array([np.average(axis, weights=weights) for axis in places])[:, None, None, None]
            source = places - share * weights * (places - middle)
            # Cubic interpolation, because linear interpolation would blur, which is another lesion effect.
            moved = ndimage.map_coordinates(old, source, order=3, mode="nearest")
            new[box] = np.where(weights > 0, np.maximum(moved, np.minimum(old[box], 0)), new[box])
        return new


def _not_below_zero(painted: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.maximum(painted, np.minimum(old, 0))
