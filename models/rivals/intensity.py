"""Intensity alone, after equalisation of the histogram.

Meissen, Kaissis, Rueckert, "Challenging current semi-supervised anomaly segmentation methods for brain MRI" (2021):
the rank of a FLAIR intensity among those of the brain finds lesions as well as auto-encoders do,

    score(x) = share of the brain's voxels that are darker.

There: FLAIR only. Here: in T1w, where lesions are dark, the share of the voxels that are brighter; with several
modalities, the highest of their scores.
"""

import numpy as np
from scipy import stats

from .scans import Controls, Scan

_DARK = frozenset({"t1w"})
"""Modalities in which lesions are darker than the tissue around them."""


class EqualisedIntensity:
    """Rank of the intensity among those of the brain. Nothing is learnt of the controls."""

    fewest_controls = 0

    def fit(self, controls: Controls) -> None:
        """Do nothing."""

    def score(self, subject: Scan) -> np.ndarray:
        """Return the ranks, from 0 to 1."""
        scores = np.zeros(subject.inside.shape, np.float32)
        for name, image in zip(subject.names, subject.images, strict=False):
            values = image[subject.inside]
            share = (stats.rankdata(values) - 0.5) / len(values)
            scores[subject.inside] = np.maximum(scores[subject.inside], 1 - share if name in _DARK else share)
        return scores
