"""Random shapes of lesions with soft edges: lobes made of overlapping balls, drawn finer than the image.

A lesion of a scan with fine voxels loses contrast at its edges when it is resampled to a coarser grid. Shapes are
therefore drawn on a grid three times as fine as the image, and sampled as preparation samples such a scan.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FINER = 3
"""Steps of the fine grid to one of the image; odd, so that voxels have the same centres."""
_SOFTNESS_MM = 1.0
_MOST_LOBES = 5
_MARGIN_MM = 8.0
"""Around a lesion, so that a blur inside it does not see the edge of the box."""


@dataclass(frozen=True, eq=False)
class SoftShape:
    """Weight of a lesion on a grid `FINER` times as fine as the image.

    Attributes
    ----------
    fine : ndarray, (3x, 3y, 3z), float32
        0 outside to 1 inside; 1/2 at the edge, which encloses the volume of the lesion.
    spacing_mm : ndarray, (3,)
        Of the image.
    count : int
        Voxels of the image that the lesion fills, at least one.
    scan_mm : float
        Voxels of the scan that the image was made of.
    """

    fine: np.ndarray
    spacing_mm: np.ndarray
    count: int
    scan_mm: float = 1.0

    def sampled(self, values: np.ndarray) -> np.ndarray:
        """Bring values of the fine grid to the voxels of the image, as a scan is prepared: (x, y, z) float32."""
        missing = np.maximum(self.spacing_mm**2 - self.scan_mm**2, 0)
        sigma = np.sqrt(missing / (8 * np.log(2))) / (self.spacing_mm / FINER)
        middle = slice(FINER // 2, None, FINER)
        return ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3.0)[middle, middle, middle]

    def noise(self, random: np.random.Generator, grain_mm: float) -> np.ndarray:
        """Draw noise on the fine grid with a standard deviation of 1 inside the lesion, and a mean of 0."""
        noise = random.standard_normal(self.fine.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, grain_mm * FINER / self.spacing_mm)
        inside = self.fine >= 0.5
        noise -= np.average(noise, weights=self.fine)
        return (noise / max(float(noise[inside].std()), 1e-9)).astype(np.float32)

    def mask(self, alpha: np.ndarray) -> np.ndarray:
        """Return the `count` voxels of the image with the highest weights (x, y, z); ties may add some."""
        return (alpha > 0) & (alpha >= np.partition(alpha.ravel(), -self.count)[-self.count])


def soft_shape(
    random: np.random.Generator, volume_mm3: float, spacing_mm: np.ndarray, scan_mm: float = 1.0
) -> SoftShape:
    """Draw a lesion of one to five overlapping balls.

    Parameters
    ----------
    random : Generator
    volume_mm3 : float
        Of the voxels with a weight of at least 1/2.
    spacing_mm : ndarray, (3,)
        Of the image.
    scan_mm : float
        Voxels of the scan that the image was made of.
    """
    radius = (0.75 * volume_mm3 / np.pi) ** (1 / 3)
    half = np.ceil((1.9 * radius + _MARGIN_MM) / spacing_mm).astype(int)
    sizes = FINER * (2 * half + 1)
    axes = [(np.arange(n) - n // 2) * step / FINER for n, step in zip(sizes, spacing_mm, strict=True)]
    # The middle lies anywhere within its voxel.
    axes = [
        axis.astype(np.float32) - step * random.uniform(-0.5, 0.5) for axis, step in zip(axes, spacing_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    depth = radius - np.sqrt(x**2 + y**2 + z**2)
    for _ in range(int(random.integers(_MOST_LOBES))):
        way = random.standard_normal(3)
        cx, cy, cz = way / np.linalg.norm(way) * random.uniform(0.6, 1.0) * radius
        lobe = random.uniform(0.4, 0.8) * radius - np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)
        depth = np.maximum(depth, lobe)
    voxel_mm3 = float(np.prod(spacing_mm))
    fine_count = max(1, round(volume_mm3 * FINER**3 / voxel_mm3))
    level = np.partition(depth.ravel(), -fine_count)[-fine_count]
    # The full change is reached inside a small lesion, too.
    softness = min(_SOFTNESS_MM, 0.5 * radius)
    fine = np.clip(0.5 + (depth - level) / (2 * softness), 0, 1).astype(np.float32)
    return SoftShape(fine, spacing_mm, max(1, round(volume_mm3 / voxel_mm3)), scan_mm)
