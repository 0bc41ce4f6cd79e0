"""z-score of the intensity at each voxel.

    score(x) = max over the modalities of |x - mean| / sqrt(variance + floor^2)

with mean and variance of the controls at that voxel. The floor, a tenth of the median standard deviation of the
brain, bounds the score where few controls happen to agree.
"""

import numpy as np

from .scans import Controls, Scan, require_controls

_FLOOR = 0.1


class ZScore:
    """z-score of the intensity at each voxel, without sign."""

    fewest_controls = 3

    def fit(self, controls: Controls) -> None:
        """Compute mean and standard deviation over the controls that have brain at a voxel."""
        require_controls("z-score", len(controls), self.fewest_controls)
        sums: list[np.ndarray | float] = [0.0, 0.0, 0.0]
        for scan in controls:
            images = scan.images.astype(np.float64) * scan.inside
            for place, values in enumerate((scan.inside.astype(np.float64), images, images**2)):
                sums[place] = sums[place] + values
        count, total, squares = (np.asarray(part) for part in sums)
        known = np.maximum(count, 1)
        self.mean = total / known
        variance = np.maximum(squares / known - self.mean**2, 0) * known / np.maximum(known - 1, 1)
        usual = np.array([np.median(own[count >= self.fewest_controls]) for own in variance])
        floor = np.maximum(_FLOOR**2 * usual, np.finfo(np.float32).tiny)[:, None, None, None]
        # Where few controls have brain, the usual variance is assumed.
        variance = np.where(count >= self.fewest_controls, variance, usual[:, None, None, None])
        self.sd = np.sqrt(variance + floor)

    def score(self, subject: Scan) -> np.ndarray:
        """Return the highest score of the modalities."""
        return np.abs((subject.images - self.mean) / self.sd).max(axis=0)
