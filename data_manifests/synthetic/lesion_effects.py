"""What a painted lesion does to a scan: darker or brighter, blurred, of another texture, swollen or thinned.

Darkening favours whatever looks at intensities. Focal cortical dysplasia often keeps the intensity and blurs the border
between grey and white matter, or thickens the cortex (Blumcke et al., Epilepsia 52, 2011): a method that is to find
small lesions that are not bright has to be tried on these as well.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from scipy import ndimage

from ..images.volume import Volume


class Effect(Protocol):
    """How a lesion changes a scan."""

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        """The voxels with the lesion in them, (X, Y, Z) float32.

        Parameters
        ----------
        image : Volume
        alpha : ndarray, (X, Y, Z), float32
            How much of the effect a voxel gets: 0 none, 1 all of it.
        """
        ...


@dataclass(frozen=True)
class Shift:
    """Add to the intensities; never below 0 where the scan was not.

    Attributes
    ----------
    change : float
        In the units of the scan; negative = darker.
    """

    change: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        old = image.voxels.astype(np.float32)
        return _not_below_zero(old + np.float32(self.change) * alpha, old)


@dataclass(frozen=True)
class Blur:
    """Smooth the scan: the border between grey and white matter fades, the mean intensity stays.

    Attributes
    ----------
    sigma_mm : float
        Standard deviation of the Gaussian.
    """

    sigma_mm: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        old = image.voxels.astype(np.float32)
        smooth = ndimage.gaussian_filter(old, self.sigma_mm / image.grid.spacing_mm)
        return old + alpha * (smooth - old)


@dataclass(frozen=True)
class Texture:
    """Add a random pattern without changing the mean of the lesion.

    Attributes
    ----------
    amplitude : float
        Standard deviation of the pattern inside the lesion, in the units of the scan.
    grain_mm : float
        Standard deviation of the Gaussian that makes it coherent; 0: every voxel by itself.
    seed : int
    """

    amplitude: float
    grain_mm: float
    seed: int

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        old = image.voxels.astype(np.float32)
        noise = np.random.default_rng(self.seed).standard_normal(old.shape)
        noise = ndimage.gaussian_filter(noise, self.grain_mm / image.grid.spacing_mm)
        inside = alpha >= 0.5
        noise -= np.average(noise, weights=alpha)
        noise /= max(float(noise[inside].std()) if inside.any() else 0.0, 1e-12)
        return _not_below_zero(old + np.float32(self.amplitude) * alpha * noise.astype(np.float32), old)


@dataclass(frozen=True)
class Swelling:
    """Move tissue away from the middle of each part of the lesion, or towards it.

    Attributes
    ----------
    growth : float
        By how much of itself the middle grows along each axis: 0.3 = 30 %; negative = thinner.
    """

    growth: float

    def painted(self, image: Volume, alpha: np.ndarray) -> np.ndarray:
        old = image.voxels.astype(np.float32)
        new = old.copy()
        parts, _ = cast(tuple[np.ndarray, int], ndimage.label(alpha > 0, structure=np.ones((3, 3, 3))))
        # Where what is seen at x comes from: closer to the middle if the tissue has moved outwards.
        share = self.growth / (1 + self.growth)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            weights = np.where(parts[box] == number, alpha[box], 0)
            places = np.indices(weights.shape) + np.array([side.start for side in box])[:, None, None, None]
            middle = np.array([np.average(axis, weights=weights) for axis in places])[:, None, None, None]
            source = places - share * weights * (places - middle)
            # Cubic: linear interpolation would blur, which is another kind of lesion.
            moved = ndimage.map_coordinates(old, source, order=3, mode="nearest")
            new[box] = np.where(weights > 0, np.maximum(moved, np.minimum(old[box], 0)), new[box])
        return new


def _not_below_zero(painted: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.maximum(painted, np.minimum(old, 0))
