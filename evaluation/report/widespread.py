"""Warning about maps that are above the threshold nearly everywhere, which no focal lesion explains."""

from collections.abc import Mapping

import numpy as np

from ...data_manifests.errors import some_of

MOST_FLAGGED = 0.1
"""Largest plausible share of each hemisphere above the threshold.

Even a large tumour with oedema (200 ml, a third of a hemisphere) hardly reaches the other hemisphere, and severe
disease of the white matter on both sides (60 ml) takes 5 % of the brain. A shift of all scores by 2.5 standard
deviations, as by another scanner, flags 10 % of both hemispheres at a threshold of 3.8.
"""


def widespread_share(scores: np.ndarray, brain: np.ndarray, affine: np.ndarray, threshold: float) -> float | None:
    """Share of the brain at or above the threshold if both hemispheres exceed `MOST_FLAGGED`; None otherwise.

    Parameters
    ----------
    scores : ndarray, (X, Y, Z)
        On a grid of MNI space.
    brain : ndarray of bool, (X, Y, Z)
    affine : ndarray, (4, 4)
    threshold : float
    """
    flagged = brain & (scores >= np.float32(threshold))
    x_mm = affine[0, 0] * np.arange(brain.shape[0]) + affine[0, 3]
    halves = [side for side in (x_mm < 0, x_mm > 0) if brain[side].any()]
    shares = [flagged[side].sum() / brain[side].sum() for side in halves]
    return float(flagged.sum() / brain.sum()) if shares and min(shares) > MOST_FLAGGED else None


def widespread_warning(shares: Mapping[str, float]) -> str | None:
    """One sentence about all these subjects, with the share of the brain of each; None without subjects."""
    if not shares:
        return None
    names = some_of(f"{key} ({share:.0%} of the brain)".replace("%", " %") for key, share in shares.items())
    return (
        f"{names}: far more lies above the threshold, in both hemispheres, than a single lesion explains. The scan "
        "differs from the controls everywhere: is it of another scanner or sequence, or did its preparation fail? "
        "Check the preprocessing quality before interpreting the clusters; to another scanner, a model is adapted with "
        "healthy scans of it (voxout adapt-scanner)."
    )
