"""Colour scale of anomaly scores, shared by all pictures of a cohort and by the viewer."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

from ..scoring.subject_scores import SubjectScores

LESION_COLOUR = (0.0, 0.9, 1.0)
"""Cyan, distinguishable from all colours of the scale with any colour vision."""
# Perceptually uniform and safe for any colour vision. The darkest part is not used: it would look like a shadow.
_COLOURS = matplotlib.colormaps["inferno"]
_DARKEST = 0.25
_BAR_WIDTH_PX, _BAR_HEIGHT_PX = 220, 14


@dataclass(frozen=True)
class ColourScale:
    """Mapping of scores to colours: transparent below `low`, the last colour from `high` on."""

    low: float
    high: float

    @classmethod
    def at(cls, threshold: float) -> "ColourScale":
        """Return a scale from the threshold to twice its value, independent of the other scores of a cohort.

        A scale of percentiles would colour 3 % of the voxels even in a cohort without anomalies.
        """
        return cls(threshold, threshold + (abs(threshold) or 1.0))

    @property
    def floor(self) -> float:
        """Lowest threshold that can be set in the viewer."""
        return self.low - (self.high - self.low) / 2

    @classmethod
    def of_cohort(cls, subjects: Sequence[SubjectScores]) -> "ColourScale":
        """Return a scale from the 97th to the 99.97th percentile of all voxels, for scores without a threshold.

        Percentiles are robust to single outlying voxels.
        """
        histograms = [s.histogram for s in subjects]
        values = np.concatenate([h.healthy_scores for h in histograms] + [h.lesion_scores for h in histograms])
        counts = np.concatenate([h.healthy_counts for h in histograms] + [h.lesion_counts for h in histograms])
        return cls._between(values, counts)

    @classmethod
    def of_maps(cls, maps: Sequence[np.ndarray]) -> "ColourScale":
        """Return the same scale from arrays of scores, for maps that were not evaluated."""
        values = np.concatenate([scores.ravel() for scores in maps])
        return cls._between(values, np.ones(len(values)))

    @classmethod
    def _between(cls, values: np.ndarray, counts: np.ndarray) -> "ColourScale":
        finite = np.isfinite(values)
        values, counts = values[finite], counts[finite]
        order = np.argsort(values)
        shares = np.cumsum(counts[order]) / counts.sum()
        low, high = (float(values[order][min(np.searchsorted(shares, q), len(order) - 1)]) for q in (0.97, 0.9997))
        return cls(low, high if high > low else low + max(abs(low), 1.0) * 1e-3)

    def share(self, scores: np.ndarray) -> np.ndarray:
        """Relative position of scores between `low` and `high`, clipped to 0 to 1."""
        return np.clip((scores - self.low) / (self.high - self.low), 0, 1)

    def paint(self, grey: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Overlay scores on a grey picture: (H, W, 3), all in [0, 1]."""
        share = self.share(scores)
        # Scores at the threshold are clearly visible, scores just below it are not coloured.
        alpha = np.where(scores >= self.low, opacity(share), 0)[..., None]
        return grey[..., None] * (1 - alpha) + colours_of(share) * alpha


def colours_of(share: np.ndarray) -> np.ndarray:
    """Colours from `low` (share 0) to `high` (share 1): (..., 3) in [0, 1]."""
    return _COLOURS(_DARKEST + (1 - _DARKEST) * np.asarray(share, dtype=np.float64))[..., :3]


def opacity(share: np.ndarray) -> np.ndarray:
    """Opacity of the overlay, 0 to 1."""
    return 0.65 + 0.25 * np.clip(share / 0.25, 0, 1)


def colour_bar(scale: ColourScale) -> np.ndarray:
    """Colour bar over mid-grey, from low to high: (H, W, 3) uint8."""
    scores = np.broadcast_to(np.linspace(scale.low, scale.high, _BAR_WIDTH_PX), (_BAR_HEIGHT_PX, _BAR_WIDTH_PX))
    return (scale.paint(np.full(scores.shape, 0.35), scores) * 255).round().astype(np.uint8)
