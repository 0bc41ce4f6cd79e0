"""Paired test of two methods on the same subjects: random signs of their differences.

If neither method is better, a subject's difference is as likely to have the other sign. The p-value is the share of all
assignments of signs whose sum is at least as far from 0 as the observed one (Fisher's randomisation test). Nothing is
assumed about the distribution of the differences.
"""

from collections.abc import Sequence

import numpy as np

MOST_ENUMERATED = 14
"""Up to this many participants, all assignments of signs are counted; above, `DRAWN` random ones."""
DRAWN = 19_999
_ROUNDING = 1e-9


def smallest_sign_flip_p(participants: int) -> float:
    """Smallest p-value that so few participants allow, at most `MOST_ENUMERATED`: all signs are the same."""
    return min(2.0 ** (1 - participants), 1.0)


def sign_flip_p(differences: Sequence[float], participants: Sequence[object] | None = None, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences.

    Parameters
    ----------
    differences : sequence of S floats
        Second method minus first, one per scan.
    participants : sequence of S labels, optional
        Sessions of one participant are not independent: their differences change sign together. By default every scan
        belongs to a different participant.
    seed : int
        Of the random signs.

    Returns
    -------
    float
        At least 2 / 2**participants, or 1 / (1 + `DRAWN`) if the signs are drawn; 1 if all differences are 0.

    Examples
    --------
    >>> sign_flip_p([0.1, 0.2, 0.3])  # 2 of the 8 assignments of signs: all positive, all negative
    0.25
    """
    labels = list(range(len(differences)) if participants is None else participants)
    sums: dict[object, float] = {}
    for label, difference in zip(labels, differences, strict=True):
        sums[label] = sums.get(label, 0.0) + float(difference)
    each = np.array([value for value in sums.values() if value != 0])
    if len(each) == 0:
        return 1.0
    observed = abs(each.sum()) - _ROUNDING * np.abs(each).sum()
    if len(each) <= MOST_ENUMERATED:
        bits = (np.arange(2 ** len(each))[:, None] >> np.arange(len(each))) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ each) >= observed))
    signs = np.random.default_rng(seed).integers(0, 2, (DRAWN, len(each)), dtype=np.int8) * 2 - 1
    return float((1 + np.count_nonzero(np.abs(signs @ each) >= observed)) / (1 + DRAWN))
