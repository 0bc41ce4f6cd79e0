"""Probability that a lesion is found, as a function of its size and strength.

A logistic regression on the logarithms of size and strength, fitted to the painted lesions of all heads. Lesions of one
head are not independent, since a head may be noisier than others; its effect is in the interval, from a bootstrap over
participants. The curve itself is that of an average head (marginal, not that of a typical one), since it is to foretell
the share of lesions found in other heads.
"""

from dataclasses import dataclass

import numpy as np

from ..metrics.bootstrap import Measure

TERMS = 4
"""Intercept, size, strength, and their product."""
_PENALTY = np.array([0.01, 0.05, 0.05, 0.5])
"""Of the squared coefficients: a curve stays finite if all lesions are found, or none."""
_STEPS, _STEADY, _LARGEST_STEP = 50, 1e-8, 3.0
OUTSIDE = "no size within the painted range"


@dataclass(frozen=True, eq=False)
class DetectionCurve:
    """Fitted curve of one kind of lesion.

    Attributes
    ----------
    usual : float
        Strength whose logarithm counts as 0.
    coefficients : ndarray, (1 + draws, 4)
        Of the lesions, and of every bootstrap sample.
    smallest_ml, largest_ml : float
        Range of the sizes that were painted.
    lesions, participants : int
    """

    usual: float
    coefficients: np.ndarray
    smallest_ml: float
    largest_ml: float
    lesions: int
    participants: int

    @classmethod
    def fit(
        cls,
        ml: np.ndarray,
        strength: np.ndarray,
        found: np.ndarray,
        weights: np.ndarray,
        *,
        usual: float,
        sizes_ml: tuple[float, float],
        participants: int,
    ) -> "DetectionCurve":
        """Fit the curve to N lesions.

        Parameters
        ----------
        ml, strength : ndarray, (N,)
        found : ndarray of bool, (N,)
        weights : ndarray, (1 + draws, N)
            How often each lesion is in each bootstrap sample; the first row is all ones.
        usual : float
        sizes_ml : tuple of float
            Smallest and largest size that was painted.
        participants : int
        """
        terms = design(ml, strength, usual)
        first = fit_logistic(terms, found, weights[0])
        # Samples resemble the cohort, so that few steps lead from its curve to theirs.
        drawn = [fit_logistic(terms, found, weight, start=first) for weight in weights[1:]]
        return cls(usual, np.array([first, *drawn]), *sizes_ml, len(found), participants)

    def probability(self, ml: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """Return the probability of N lesions in each sample, (1 + draws, N)."""
        return expit(self.coefficients @ design(np.asarray(ml), np.asarray(strength), self.usual).T)

    def limits_ml(self, share: float, strength: float, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the size of which a share of lesions is found, in each sample, (1 + draws,).

        Parameters
        ----------
        share, strength : float
        shift : float or ndarray, (1 + draws,)
            Added to the logit, for places where lesions are easier or harder to find.

        Returns
        -------
        ndarray
            Where the curve does not rise with size, 0 if more than the share is found, infinite otherwise.
        """
        at = np.log(strength / self.usual)
        height = self.coefficients[:, 0] + self.coefficients[:, 2] * at + shift
        slope = self.coefficients[:, 1] + self.coefficients[:, 3] * at
        missing = np.log(share / (1 - share)) - height
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(slope > 0, np.exp(missing / slope), np.where(missing < 0, 0, np.inf))

    def limit(self, share: float, strength: float, shift: np.ndarray | float = 0.0) -> Measure:
        """Return the limit as a measure; sizes outside those painted are set to the smallest or the largest."""
        sizes = np.clip(self.limits_ml(share, strength, shift), self.smallest_ml, self.largest_ml)
        return Measure(float(sizes[0]), sizes[1:], self.lesions, self.participants, OUTSIDE)


def design(ml: np.ndarray, strength: np.ndarray, usual: float) -> np.ndarray:
    """Return the terms of N lesions, (N, 4)."""
    size, by = np.log(ml), np.log(strength / usual)
    return np.stack([np.ones_like(size), size, by, size * by], axis=1)


def fit_logistic(
    terms: np.ndarray, found: np.ndarray, weights: np.ndarray, *, start: np.ndarray | None = None
) -> np.ndarray:
    """Fit a logistic regression with a weak penalty by Newton's method, (4,).

    Parameters
    ----------
    terms : ndarray, (N, 4)
    found : ndarray of bool, (N,)
    weights : ndarray, (N,)
    start : ndarray, (4,), optional
    """
    coefficients = np.zeros(terms.shape[1]) if start is None else start.copy()
    for _ in range(_STEPS):
        p = expit(terms @ coefficients)
        slope = terms.T @ (weights * (found - p)) - _PENALTY * coefficients
        curvature = (terms * (weights * p * (1 - p))[:, None]).T @ terms + np.diag(_PENALTY)
        step = np.linalg.solve(curvature, slope)
        coefficients = coefficients + step * min(1.0, _LARGEST_STEP / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < _STEADY:
            break
    return coefficients


def expit(values: np.ndarray) -> np.ndarray:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-np.clip(values, -700, 700)))


def shifts(
    logits: np.ndarray, found: np.ndarray, nearness: np.ndarray, *, prior: float = 1.0, steps: int = 8
) -> np.ndarray:
    """Return how much easier lesions are found at V places than on average, as shifts of the logit, (V,).

    Parameters
    ----------
    logits : ndarray, (N,)
        Of the curves, for each lesion.
    found : ndarray of bool, (N,)
    nearness : ndarray, (V, N)
        Weight of each lesion at each place.
    prior : float
        Precision of the shifts around 0: places with few lesions are taken for average ones.
    steps : int
        Of Newton's method.
    """
    shift = np.zeros(len(nearness))
    for _ in range(steps):
        p = expit(logits[None] + shift[:, None])
        slope = (nearness * (found[None] - p)).sum(axis=1) - prior * shift
        shift += np.clip(slope / ((nearness * p * (1 - p)).sum(axis=1) + prior), -2, 2)
    return shift
