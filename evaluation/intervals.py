"""Estimates with intervals, by bootstrap over subjects.

Voxels of one brain are no independent observations, so they are never resampled: a draw takes whole subjects with
replacement. Subjects with and without lesions are drawn apart, which keeps the make-up of the cohort and lets no
draw end up without a lesion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FEWEST_SUBJECTS = 3
"""Below this many subjects an interval would be narrower than it deserves: none is given."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, or the reason why there is none.

    Attributes
    ----------
    value : float or None
        None when not defined: never 0 or 1 in its place.
    n : int
        How many things stand behind it (subjects or lesions, as the metric says).
    ci_low, ci_high : float or None
        Percentile interval of the bootstrap over subjects.
    reason_undefined : str or None
        Why `value` is None.
    """

    value: float | None
    n: int = 1
    ci_low: float | None = None
    ci_high: float | None = None
    reason_undefined: str | None = None

    def __post_init__(self):
        if (self.value is None) == (self.reason_undefined is None):
            raise ValueError("an estimate has a value or a reason why it has none")
        if self.value is not None and not np.isfinite(self.value):
            raise ValueError(f"an estimate is finite or undefined with a reason, not {self.value}")

    @classmethod
    def undefined(cls, reason: str) -> "Estimate":
        return cls(None, n=0, reason_undefined=reason)

    def with_interval(self, draws: np.ndarray, confidence: float, *, subjects: int) -> "Estimate":
        """Add the percentile interval of `draws`; none where the value is undefined or the subjects are too few."""
        if self.value is None or subjects < FEWEST_SUBJECTS:
            return self
        low, high = percentile_interval(draws, confidence)
        return replace(self, ci_low=low, ci_high=high)


def resample_subjects(strata: Sequence[object], draws: int, seed: int) -> np.ndarray:
    """How often each subject is in each draw.

    Parameters
    ----------
    strata : sequence of S labels
        Subjects are drawn with replacement among those of their own label.
    draws : int
    seed : int

    Returns
    -------
    ndarray of float64, (draws, S)
        Counts; within a stratum they sum to its number of subjects.
    """
    random = np.random.default_rng(seed)
    weights = np.zeros((draws, len(strata)))
    for stratum in sorted(set(strata), key=str):
        members = np.flatnonzero([label == stratum for label in strata])
        weights[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return weights


def percentile_interval(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """The central share `confidence` of the finite draws; (None, None) when fewer than half of them are finite."""
    draws = np.asarray(draws, dtype=np.float64)
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < max(len(draws), 1):
        return None, None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_over_subjects(values: Sequence[float | None], weights: np.ndarray, confidence: float, *, why_none: str):
    """Mean of one number a subject, with its interval.

    Parameters
    ----------
    values : sequence of S floats or None
        None: this subject has no such number and is left out of the mean (and out of `n`).
    weights : ndarray, (draws, S)
        From `resample_subjects`.
    confidence : float
    why_none : str
        The reason when no subject has the number.

    Returns
    -------
    Estimate
    """
    known = np.array([value is not None for value in values], dtype=bool)
    if not known.any():
        return Estimate.undefined(why_none)
    numbers = np.array([0.0 if value is None else value for value in values])
    totals = weights @ known
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.where(totals > 0, (weights @ numbers) / totals, np.nan)
    n = int(known.sum())
    return Estimate(float(numbers[known].mean()), n=n).with_interval(draws, confidence, subjects=n)
