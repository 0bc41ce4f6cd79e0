"""Weights of the scorers, chosen on a few labelled patients.

With -log10 p of the scorers s_k, the map is a p-norm of w_k s_k. It rises with each scorer, whatever the weights, and
equal weights give the map of the model. Weights are chosen from a list, by the mean over the patients of the logarithm
of the average precision, less a penalty for their distance from equal weights. How strong the penalty is, is chosen by
cross-validation over the patients: the strongest one that is within a standard error of the best (Breiman et al.,
"Classification and Regression Trees", 1984). Without bounds it keeps the model as it is.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from .labelled_voxels import LabelledVoxels, average_precision

STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)
MOST_CANDIDATES = 125
PENALTIES = (np.inf, 0.3, 0.1, 0.03, 0.01, 0.0)
"""Per squared logarithm of a weight, the strongest first."""
WITHOUT_CROSS_VALIDATION = 0.1
"""Penalty where a single participant is left to choose weights on."""

Combine = Callable[[np.ndarray], np.ndarray]
"""Combines the weighted -log10 p (K, n) of the scorers: (n,)."""


def candidates(groups: Sequence[int], seed: int) -> np.ndarray:
    """Return lists of weights to choose from, the first of them equal, (C, K).

    Parameters
    ----------
    groups : sequence of K int
        Scorers with the same number, such as those on different encoders, have the same weight.
    seed : int
        Of the weights drawn at random, where all combinations of `STEPS` would be too many.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(STEPS) ** len(names) <= MOST_CANDIDATES:
        drawn = np.array(list(itertools.product(STEPS, repeat=len(names))))
    else:
        low, high = np.log(STEPS[0]), np.log(STEPS[-1])
        drawn = np.exp(np.random.default_rng(seed).uniform(low, high, (MOST_CANDIDATES, len(names))))
    # What all weights have in common changes nothing, since the result is calibrated.
    drawn /= np.exp(np.log(drawn).mean(axis=1, keepdims=True))
    every = np.unique(np.round(np.vstack([np.ones(len(names)), drawn]), 6), axis=0)
    return every[np.argsort(_distances(every), kind="stable")][:, group]


def table_of(patients: Sequence[LabelledVoxels], weights: np.ndarray, combine: Combine) -> np.ndarray:
    """Logarithm of the average precision of each list of weights in each patient, (C, S)."""
    table = np.empty((len(weights), len(patients)))
    for column, patient in enumerate(patients):
        for row, own in enumerate(weights):
            scores = combine(own[:, None] * patient.values)
            table[row, column] = np.log(average_precision(scores, patient.lesion, patient.counts))
    return table


def choose(table: np.ndarray, participants: Sequence[str], weights: np.ndarray) -> int:
    """Choose weights.

    Parameters
    ----------
    table : ndarray, (C, S)
        From `table_of`.
    participants : sequence of S str
        Scans of one participant are left out together.
    weights : ndarray, (C, K)
        From `candidates`.

    Returns
    -------
    int
        Row of `table` and `weights`.
    """
    names, distances = np.asarray(participants), _distances(weights)
    penalty = WITHOUT_CROSS_VALIDATION
    if len(np.unique(names)) > 1:
        penalty = _strongest([_left_out(table, names, distances, each) for each in PENALTIES])
    return _best(table, names, distances, penalty)


def _strongest(values: Sequence[np.ndarray]) -> float:
    """Return the strongest penalty whose values, of each participant, are within a standard error of the best."""
    best = values[int(np.argmax([each.mean() for each in values]))]
    for penalty, own in zip(PENALTIES, values, strict=True):
        missed = best - own
        if missed.mean() <= missed.std(ddof=1) / np.sqrt(len(missed)):
            return penalty
    return PENALTIES[-1]


def _left_out(table: np.ndarray, names: np.ndarray, distances: np.ndarray, penalty: float) -> np.ndarray:
    """Value for each participant of the weights that are chosen without it."""
    own = []
    for name in np.unique(names):
        others = names != name
        own.append(table[_best(table[:, others], names[others], distances, penalty), ~others].mean())
    return np.array(own)


def _best(table: np.ndarray, names: np.ndarray, distances: np.ndarray, penalty: float) -> int:
    if np.isinf(penalty):
        return int(np.argmin(distances))
    means = np.mean([table[:, names == name].mean(axis=1) for name in np.unique(names)], axis=0)
    return int(np.argmax(means - penalty * distances))


def _distances(weights: np.ndarray) -> np.ndarray:
    logs = np.log(weights)
    return np.square(logs - logs.mean(axis=1, keepdims=True)).sum(axis=1)
