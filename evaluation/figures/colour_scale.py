"""Scores and their colours: one scale for a whole cohort, the same in every picture and in the viewer."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

from ..scoring.subject_scores import SubjectScores

LESION_COLOUR = (0.0, 0.9, 1.0)
"""Cyan: no colour of the scale comes near it, with any colour vision."""
# Perceptually uniform and safe for every colour vision. The darkest part would look like shadow on the scan.
_COLOURS = matplotlib.colormaps["inferno"]
_DARKEST = 0.25


@dataclass(frozen=True)
class ColourScale:
    """Scores and their colours. Below `low` the map is transparent, from `high` on the colour is the last one."""

    low: float
    high: float

    @classmethod
    def at(cls, threshold: float) -> "ColourScale":
        """From the threshold to twice its height: the same in every picture, whatever else a cohort holds.

        A scale of percentiles would colour 3 % of the voxels of a cohort in which nothing is suspicious.
        """
        return cls(threshold, threshold + (abs(threshold) or 1.0))

    @property
    def floor(self) -> float:
        """The lowest score that a reader can lower the viewer's threshold to."""
        return self.low - (self.high - self.low) / 2

    @classmethod
    def of_cohort(cls, subjects: Sequence[SubjectScores]) -> "ColourScale":
        """From the 97th percentile of all voxels to the 99.97th: for scores that no threshold is known of.

        Shares, so that one outlying voxel cannot wash out everybody's picture.
        """
        histograms = [s.histogram for s in subjects]
        values = np.concatenate([h.healthy_scores for h in histograms] + [h.lesion_scores for h in histograms])
        counts = np.concatenate([h.healthy_counts for h in histograms] + [h.lesion_counts for h in histograms])
        return cls._between(values, counts)

    @classmethod
    def of_maps(cls, maps: Sequence[np.ndarray]) -> "ColourScale":
        """The same from bare scores, for maps that were not scored."""
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
        """How far a score lies between `low` and `high`, 0 to 1."""
        return np.clip((scores - self.low) / (self.high - self.low), 0, 1)

    def paint(self, grey: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Lay scores over a grey picture: (H, W, 3), all in [0, 1]."""
        share = self.share(scores)
        # What just reaches the threshold has to be seen, and what just misses it not at all.
        alpha = np.where(scores >= self.low, opacity(share), 0)[..., None]
        return grey[..., None] * (1 - alpha) + colours_of(share) * alpha


def colours_of(share: np.ndarray) -> np.ndarray:
    """Colours from `low` (share 0) to `high` (share 1): (..., 3) in [0, 1]."""
    return _COLOURS(_DARKEST + (1 - _DARKEST) * np.asarray(share, dtype=np.float64))[..., :3]


def opacity(share: np.ndarray) -> np.ndarray:
    """How much of the scan the colours of the scale cover, 0 to 1."""
    return 0.65 + 0.25 * np.clip(share / 0.25, 0, 1)


def colour_bar(scale: ColourScale, width_px: int = 220, height_px: int = 14) -> np.ndarray:
    """The colours of a scale over mid-grey, from low to high: (H, W, 3) uint8."""
    scores = np.broadcast_to(np.linspace(scale.low, scale.high, width_px), (height_px, width_px))
    return (scale.paint(np.full(scores.shape, 0.35), scores) * 255).round().astype(np.uint8)
