"""A map in standard deviations as p-values, and the p-values of one brain adjusted for its many voxels.

Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", JRSS B 57 (1995): with the p-values of m voxels
in ascending order, q of the k-th is the least ``p_j m / j`` over j >= k. Among the voxels with ``q <= r``, a share of
at most r is false on average, where the p-values hold and neighbours do not contradict each other. All is told as
-log10: higher = more anomalous, and nothing comes out as 0 for being small.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Discovery:
    """What of a brain survives.

    Attributes
    ----------
    rate : float
        The false discovery rate that is allowed.
    threshold : float or None
        The lowest score that survives; None: no voxel does.
    """

    rate: float
    threshold: float | None

    @classmethod
    def from_z(cls, z: np.ndarray, rate: float) -> "Discovery":
        """Find the threshold for the scores (N,) of one brain, in standard deviations."""
        survive = log_q(z) >= -np.log10(rate)
        return cls(rate, float(z[survive].min()) if survive.any() else None)


def log_p(z: np.ndarray) -> np.ndarray:
    """-log10 of the share of healthy voxels that score as high: standard deviations of any shape, float64."""
    # The logarithm keeps its digits where p itself would be 0.
    return -special.log_ndtr(-np.asarray(z, np.float64)) / np.log(10)


def log_q(z: np.ndarray) -> np.ndarray:
    """-log10 of Benjamini and Hochberg's q.

    Parameters
    ----------
    z : ndarray, (N,)
        All scores of one brain, in standard deviations.

    Returns
    -------
    ndarray, (N,), float64
        From 0, never more than `log_p`; it rises with the score, and scores that are alike have one q.
    """
    order = np.argsort(z)[::-1]  # The smallest p comes first.
    adjusted = log_p(z[order]) - np.log10(len(z) / np.arange(1, len(z) + 1))
    # The least q from here on is the largest -log10.
    q = np.empty(len(z))
    q[order] = np.maximum.accumulate(adjusted[::-1])[::-1]
    return np.maximum(q, 0)
