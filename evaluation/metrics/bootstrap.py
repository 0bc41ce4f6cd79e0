"""Bootstrap intervals over subjects.

Voxels of one brain are not independent observations, so they are never resampled: each bootstrap sample draws complete
subjects with replacement. Subjects with and without lesions are drawn separately, which keeps the composition of the
cohort and ensures that every sample contains lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""Confidence level of all intervals."""
FEWEST_SUBJECTS = 3
"""No interval is given for fewer subjects: it would be too narrow."""


@dataclass(frozen=True)
class Estimate:
    """Value of a metric with its interval, or the reason why it is undefined.

    Attributes
    ----------
    value : float or None
        None if undefined; never replaced by 0 or 1.
    n : int
        Number of observations (subjects or lesions, depending on the metric).
    ci_low, ci_high : float or None
        Percentile interval of the bootstrap over subjects.
    reason_undefined : str or None
        Reason why `value` is None.
    """

    value: float | None
    n: int = 1
    ci_low: float | None = None
    ci_high: float | None = None
    reason_undefined: str | None = None

    def __post_init__(self):
        if (self.value is None) == (self.reason_undefined is None):
            raise ValueError("an estimate needs either a value or a reason why it is undefined")
        if self.value is not None and not np.isfinite(self.value):
            raise ValueError(f"the value of an estimate is {self.value}, expected a finite number or None")

    @classmethod
    def undefined(cls, reason: str) -> "Estimate":
        """Return an estimate without a value, for this reason."""
        return cls(None, n=0, reason_undefined=reason)


@dataclass(frozen=True, eq=False)
class Measure:
    """Value of a metric in the cohort and in every bootstrap sample, for paired comparisons of methods.

    Attributes
    ----------
    value : float
        NaN if undefined.
    draws : ndarray of float64, (draws,)
        Value in each bootstrap sample; NaN where it is undefined.
    n : int
        Number of observations.
    subjects : int
        Number of subjects among them; an interval needs at least `FEWEST_SUBJECTS`.
    why_none : str
        Reason given if the metric is undefined.
    """

    value: float
    draws: np.ndarray
    n: int
    subjects: int
    why_none: str

    def estimate(self) -> Estimate:
        """Return the value with its percentile bootstrap interval."""
        if not np.isfinite(self.value):
            return Estimate.undefined(self.why_none)
        low, high = percentile_interval(self.draws) if self.subjects >= FEWEST_SUBJECTS else (None, None)
        return Estimate(float(self.value), self.n, low, high)

    def minus(self, other: "Measure") -> "Measure":
        """Paired difference; both measures must come from the same bootstrap samples of the same subjects."""
        why_none = self.why_none if not np.isfinite(self.value) else other.why_none
        n, subjects = min(self.n, other.n), min(self.subjects, other.subjects)
        return Measure(self.value - other.value, self.draws - other.draws, n, subjects, why_none)


def resample_subjects(
    strata: Sequence[object], draws: int, seed: int, participants: Sequence[object] | None = None
) -> np.ndarray:
    """Count how often each scan occurs in each bootstrap sample.

    Parameters
    ----------
    strata : sequence of S labels
        Participants are drawn with replacement among those whose scans have the same labels.
    draws : int
        Number of bootstrap samples.
    seed : int
    participants : sequence of S labels, optional
        Participant of each scan. Sessions of one participant are not independent and are drawn together. By default
        every scan belongs to a different participant.

    Returns
    -------
    ndarray of float64, (1 + draws, S)
        Counts; within a stratum they sum to its number of participants. The first row is the cohort itself (all ones).
    """
    random = np.random.default_rng(seed)
    scans: dict[object, list[int]] = {}
    for row, participant in enumerate(participants if participants is not None else range(len(strata))):
        scans.setdefault(participant, []).append(row)
    alike: dict[str, list[list[int]]] = {}
    for rows in scans.values():
        alike.setdefault(str(sorted({str(strata[row]) for row in rows})), []).append(rows)
    weights = np.ones((1 + draws, len(strata)))
    for stratum in sorted(alike):
        members = alike[stratum]
        counts = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        for rows, count in zip(members, counts.T, strict=True):
            weights[1:, rows] = count[:, None]
    return weights


def percentile_interval(draws: np.ndarray) -> tuple[float | None, float | None]:
    """Interval with `CONFIDENCE` of the finite draws; (None, None) if fewer than half of the draws are finite."""
    draws = np.asarray(draws, dtype=np.float64)
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < max(len(draws), 1):
        return None, None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def ratio(
    above: np.ndarray, below: np.ndarray, weights: np.ndarray, *, n: int, subjects: int, why_none: str
) -> Measure:
    """Ratio of two sums over subjects.

    Parameters
    ----------
    above, below : ndarray, (S,) or (S, 1 + draws)
        Numerator and denominator per subject; the second form if they also depend on the bootstrap sample (for example
        through its threshold).
    weights : ndarray, (1 + draws, S)
        From `resample_subjects`.
    n, subjects, why_none
        As in `Measure`.
    """
    tops, bottoms = (
        weights @ part if part.ndim == 1 else np.einsum("ds,sd->d", weights, part) for part in (above, below)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(bottoms > 0, tops / bottoms, np.nan)
    return Measure(float(values[0]), values[1:], n, subjects, why_none)


def mean_over_subjects(values: Sequence[float | None], weights: np.ndarray, *, why_none: str) -> Measure:
    """Mean of one number per subject.

    Parameters
    ----------
    values : sequence of S floats or None
        None: the number is undefined for this subject, which is left out of the mean and of `n`.
    weights : ndarray, (1 + draws, S)
        From `resample_subjects`.
    why_none : str
        Reason given if the number is undefined for all subjects.
    """
    known = np.array([float(value is not None) for value in values])
    numbers = np.array([0.0 if value is None else value for value in values])
    n = int(known.sum())
    return ratio(numbers, known, weights, n=n, subjects=n, why_none=why_none)
