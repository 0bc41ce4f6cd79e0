"""Comparison of the curves with lesions in heads that they were not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detection_curve import design, expit, fit_logistic

SIZE_BANDS_ML = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FEWEST = 20
"""Cells with fewer lesions say little."""
WITHIN = 0.10


@dataclass(frozen=True)
class Cell:
    """Lesions of one kind and similar size.

    Attributes
    ----------
    kind : str
    smallest_ml, largest_ml : float
    lesions : int
    foretold, observed : float
        Share found: mean probability of the curve of the other heads, and share of these lesions.
    standard_error : float
        Of the observed share, if lesions were independent and the curve true.
    """

    kind: str
    smallest_ml: float
    largest_ml: float
    lesions: int
    foretold: float
    observed: float
    standard_error: float

    @property
    def agrees(self) -> bool:
        """Whether the two shares differ by at most 0.10."""
        return abs(self.foretold - self.observed) <= WITHIN + 1e-9


def foretold_by_other_heads(
    ml: np.ndarray, strength: np.ndarray, found: np.ndarray, participants: Sequence[str], usual: float
) -> np.ndarray:
    """Return the probability of each lesion by a curve fitted to the other participants, (N,); NaN with one alone."""
    names, terms = np.array(participants), design(ml, strength, usual)
    foretold = np.full(len(ml), np.nan)
    for name in np.unique(names):
        own = names == name
        if not own.all():
            coefficients = fit_logistic(terms[~own], found[~own], np.ones(int((~own).sum())))
            foretold[own] = expit(terms[own] @ coefficients)
    return foretold


def cells_of(kind: str, ml: np.ndarray, foretold: np.ndarray, found: np.ndarray) -> list[Cell]:
    """Return the bands of size of a kind that hold lesions."""
    band = np.clip(np.searchsorted(SIZE_BANDS_ML, ml, side="right") - 1, 0, len(SIZE_BANDS_ML) - 2)
    cells = []
    for index in range(len(SIZE_BANDS_ML) - 1):
        own = (band == index) & np.isfinite(foretold)
        if own.any():
            p = foretold[own]
            error = float(np.sqrt((p * (1 - p)).sum()) / own.sum())
            low, high = SIZE_BANDS_ML[index : index + 2]
            cells.append(Cell(kind, low, high, int(own.sum()), float(p.mean()), float(found[own].mean()), error))
    return cells
