"""Subsets of the controls in a cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def evenly_spaced(number: int, most: int) -> np.ndarray:
    """Choose at most `most` of so many items: their indices, in ascending order, each once."""
    return np.linspace(0, number - 1, min(number, most)).astype(np.int64)


def effective_number(weights: np.ndarray) -> float:
    """Effective number of controls, ``(sum w)^2 / sum w^2``: as many equal weights give a mean of the same variance."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def effective_weights(weights: np.ndarray) -> np.ndarray:
    """Scale weights so that their sum is the effective number of controls."""
    return weights * (weights.sum() / np.square(weights).sum())


def training_sets(folds: Sequence[np.ndarray], controls: int) -> list[np.ndarray]:
    """Ascending indices of the controls of each subset: all without one fold, and last all of them."""
    everyone = np.arange(controls)
    return [*(np.setdiff1d(everyone, fold) for fold in folds), everyone]


@dataclass(frozen=True, eq=False)
class Subsets:
    """Subsets of the controls on which a model is fitted: all controls without one fold, and last all of them.

    Attributes
    ----------
    folds : sequence of ndarray of int
        Indices of the controls of each fold, each control in one fold; none: all controls are the only subset.
    confounds : sequence of ndarray, (S, k)
        Confounds of all controls, as learnt on each subset.
    weights : ndarray, (S,), or None
        Weight of each control; None: 1. A control with the weight 2 counts as two equal ones, so that the sum of the
        weights is a number of controls (`effective_weights`).
    copies : ndarray of bool, (S,), or None
        Which of the controls are mirrored copies; None: none of them. They count in moments and have scores, but no
        one-class SVM is fitted on them, since a model with their support vectors would be twice as large.
    """

    folds: Sequence[np.ndarray]
    confounds: Sequence[np.ndarray]
    weights: np.ndarray | None = None
    copies: np.ndarray | None = None

    @classmethod
    def everyone(cls, confounds: np.ndarray) -> "Subsets":
        """Return the subset of all controls, with their confounds (S, k)."""
        return cls((), (confounds,))

    def __len__(self) -> int:
        return len(self.confounds)

    @cached_property
    def order(self) -> np.ndarray:
        """Controls ordered by fold, (S,)."""
        return np.concatenate(self.folds) if self.folds else np.arange(len(self.confounds[0]))

    @cached_property
    def segments(self) -> np.ndarray:
        """Fold f is ``order[segments[f]:segments[f + 1]]``; without folds, all controls are one segment."""
        return np.cumsum([0, *(len(fold) for fold in self.folds)] if self.folds else [0, len(self.order)])

    def place(self, subset: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in `order` of the controls in a subset, and of the others."""
        places = np.arange(len(self.order))
        if subset == len(self.folds):
            return places, places[:0]
        first, last = self.segments[subset : subset + 2]
        return np.delete(places, slice(first, last)), places[first:last]

    @cached_property
    def ordered_copies(self) -> np.ndarray:
        """Which of the controls in `order` are mirrored copies, (S,) bool."""
        return np.zeros(len(self.order), bool) if self.copies is None else np.asarray(self.copies)[self.order]

    @cached_property
    def ordered_weights(self) -> np.ndarray:
        """Weights of the controls in `order`, (S,) float64."""
        return np.ones(len(self.order)) if self.weights is None else np.asarray(self.weights, np.float64)[self.order]

    @cached_property
    def members(self) -> np.ndarray:
        """Segments of which each subset consists, (R, G) bool."""
        members = np.ones((len(self), len(self.segments) - 1), bool)
        members[np.arange(len(self.folds)), np.arange(len(self.folds))] = False
        return members
