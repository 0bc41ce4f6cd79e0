"""Estimates with intervals, by bootstrap over subjects.

Voxels of one brain are no independent observations, so they are never resampled: a draw takes whole subjects with
replacement. Subjects with and without lesions are drawn apart, which keeps the make-up of the cohort and lets no
draw end up without a lesion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Measure:
    """A number and what it is in every draw of the bootstrap: with these, methods are compared draw by draw.

    Attributes
    ----------
    value : float
        NaN when not defined.
    draws : ndarray of float64, (draws,)
        NaN where a draw does not define it.
    n : int
        How many things stand behind it.
    subjects : int
        How many subjects do: too few of them give no interval.
    why_none : str
        The reason when it is not defined.
    """

    value: float
    draws: np.ndarray
    n: int
    subjects: int
    why_none: str

    def estimate(self, confidence: float) -> Estimate:
        """The number with the percentile interval of its draws."""
        if not np.isfinite(self.value):
            return Estimate.undefined(self.why_none)
        low, high = percentile_interval(self.draws, confidence) if self.subjects >= FEWEST_SUBJECTS else (None, None)
        return Estimate(float(self.value), self.n, low, high)

    def minus(self, other: "Measure") -> "Measure":
        """The difference, paired: both must come from the same draws of the same subjects."""
        why_none = self.why_none if not np.isfinite(self.value) else other.why_none
        n, subjects = min(self.n, other.n), min(self.subjects, other.subjects)
        return Measure(self.value - other.value, self.draws - other.draws, n, subjects, why_none)


def resample_subjects(
    strata: Sequence[object], draws: int, seed: int, participants: Sequence[object] | None = None
) -> np.ndarray:
    """How often each scan is in each draw.

    Parameters
    ----------
    strata : sequence of S labels
        Persons are drawn with replacement among those whose scans have the same labels.
    draws : int
    seed : int
    persons : sequence of S labels, optional
        Whose scan it is: the sessions of one person are no independent observations, and are drawn together. By
        default every scan is of somebody else.

    Returns
    -------
    ndarray of float64, (1 + draws, S)
        Counts; within a stratum they sum to its number of persons. The first row is the cohort itself, each once.
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


def percentile_interval(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """The central share `confidence` of the finite draws; (None, None) when fewer than half of them are finite."""
    draws = np.asarray(draws, dtype=np.float64)
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < max(len(draws), 1):
        return None, None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ratio(
    above: np.ndarray, below: np.ndarray, weights: np.ndarray, *, n: int, subjects: int, why_none: str
) -> Measure:
    """A sum over subjects over another one.

    Parameters
    ----------
    above, below : ndarray, (S,) or (S, 1 + draws)
        The second form where a draw also changes a subject's own number, as its threshold does.
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
    """Mean of one number a subject.

    Parameters
    ----------
    values : sequence of S floats or None
        None: this subject has no such number and is left out of the mean (and out of `n`).
    weights : ndarray, (1 + draws, S)
        From `resample_subjects`.
    why_none : str
        The reason when no subject has the number.
    """
    known = np.array([float(value is not None) for value in values])
    numbers = np.array([0.0 if value is None else value for value in values])
    n = int(known.sum())
    return ratio(numbers, known, weights, n=n, subjects=n, why_none=why_none)
