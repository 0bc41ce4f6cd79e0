"""P-values of z-maps and their Benjamini-Hochberg adjustment over the voxels of one brain.

Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", JRSS B 57 (1995): with the p-values of m voxels
in ascending order, q of the k-th is the minimum of ``p_j m / j`` over j >= k. Among the voxels with ``q <= r``, the
expected fraction of false discoveries is at most r if the p-values are valid and voxels are positively dependent.
Results are -log10: higher = more anomalous, and small p-values do not underflow to 0.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

FALSE_DISCOVERY_RATE = 0.05
"""Rate that is reported on a subject's page."""


@dataclass(frozen=True)
class Discovery:
    """Voxels of one brain that survive a false discovery rate.

    Attributes
    ----------
    rate : float
        False discovery rate.
    threshold : float or None
        Lowest surviving score; None if no voxel survives.
    """

    rate: float
    threshold: float | None

    @classmethod
    def from_z(cls, z: np.ndarray) -> "Discovery":
        """Find the threshold at `FALSE_DISCOVERY_RATE` for the z-scores (N,) of one brain."""
        survive = log_q(z) >= -np.log10(FALSE_DISCOVERY_RATE)
        return cls(FALSE_DISCOVERY_RATE, float(z[survive].min()) if survive.any() else None)


def log_p(z: np.ndarray) -> np.ndarray:
    """Return -log10 of the one-sided p-values of z-scores: float64, same shape."""
    # log_ndtr avoids underflow of small p-values.
    return -special.log_ndtr(-np.asarray(z, np.float64)) / np.log(10)


def log_q(z: np.ndarray) -> np.ndarray:
    """Return -log10 of the Benjamini-Hochberg q-values.

    Parameters
    ----------
    z : ndarray, (N,)
        All z-scores of one brain.

    Returns
    -------
    ndarray of float64, (N,)
        At least 0 and at most `log_p`; non-decreasing in the score, equal for tied scores.
    """
    order = np.argsort(z)[::-1]  # Smallest p first.
    adjusted = log_p(z[order]) - np.log10(len(z) / np.arange(1, len(z) + 1))
    # The minimum of q over later ranks is the maximum of -log10 q.
    q = np.empty(len(z))
    q[order] = np.maximum.accumulate(adjusted[::-1])[::-1]
    return np.maximum(q, 0)
