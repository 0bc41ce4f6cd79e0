"""Performance curves of a cohort with pointwise bootstrap bands over subjects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import CONFIDENCE, FEWEST_SUBJECTS
from ..scoring.score_cohort import CohortScores, bootstrap_weights
from ..scoring.subject_scores import SubjectScores

GRID = np.linspace(0, 1, 201)
"""Rates at which bands are evaluated. The PRO grid is finer, since PRO is shown up to 0.3 only."""
PRO_GRID = np.linspace(0, 0.3, 201)
FROC_GRID = np.geomspace(0.125, 16, 120)
_DRAWS_AT_ONCE = 64
_SEED = 0
"""Seed of the bootstrap."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Curve with its bootstrap band.

    Attributes
    ----------
    x, y : ndarray, (N,)
        Points of the curve.
    at : ndarray, (M,)
        Values of x at which the band is evaluated.
    low, high : ndarray, (M,), or None
        Limits of the band; None with too few subjects.
    """

    x: np.ndarray
    y: np.ndarray
    at: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True, eq=False)
class CohortCurves:
    """Curves of a cohort; None if undefined (no lesion voxels, healthy voxels or lesions of sufficient volume)."""

    roc: Curve | None
    precision_recall: Curve | None
    pro: Curve | None
    froc: Curve | None


def cohort_curves(scores: CohortScores) -> CohortCurves:
    """Compute all curves of a cohort.

    Bootstrap samples draw subjects with replacement, separately with and without lesions, as for the metrics.

    Parameters
    ----------
    scores : CohortScores
    """
    known = [s for s in scores.subjects if s.truth_known]
    settings = scores.settings
    weights = bootstrap_weights(known, settings.bootstrap_draws, _SEED)[1:]
    with_lesions = sum(s.has_lesions for s in known)

    def band(at: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        if with_lesions < FEWEST_SUBJECTS:
            return None, None
        margin = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(draws, [margin, 1 - margin], axis=0)
        return low, high

    roc = precision_recall = pro = None
    pooled = scores.counts
    if pooled.lesion.sum() > 0 and pooled.healthy.sum() > 0:
        functions: list[tuple[Callable[[vm.RankCounts], tuple[np.ndarray, np.ndarray]], np.ndarray]] = [
            (vm.roc_curve, GRID),
            (vm.precision_recall_curve, GRID[1:]),
        ]
        if pooled.lesion_weights.sum() > 0:
            functions.append((vm.pro_curve, PRO_GRID))
        drawn = _drawn(scores.each, weights, functions)
        curves = [
            Curve(*function(pooled), at, *band(at, values))
            for (function, at), values in zip(functions, drawn, strict=True)
        ]
        roc, precision_recall, pro = (*curves, None)[:3]
    froc = None
    if scores.froc is not None:
        froc = Curve(*scores.froc, FROC_GRID, *band(FROC_GRID, _froc_draws(known, weights)))
    return CohortCurves(roc, precision_recall, pro, froc)


def _drawn(each: vm.RankCounts, weights: np.ndarray, functions) -> list[np.ndarray]:
    """Evaluate every curve of every bootstrap sample on its grid: (draws, M) for each curve."""
    values = [np.empty((len(weights), len(at))) for _, at in functions]
    for start in range(0, len(weights), _DRAWS_AT_ONCE):
        several = each.reweighted(weights[start : start + _DRAWS_AT_ONCE])
        for row in range(len(several.healthy)):
            one = vm.RankCounts(
                several.healthy[row], several.lesion[row], several.lesion_weights[row], several.lowest_scores
            )
            for store, (function, at) in zip(values, functions, strict=True):
                store[start + row] = np.interp(at, *function(one))
    return values


def _froc_draws(known: Sequence[SubjectScores], weights: np.ndarray) -> np.ndarray:
    """Lesion sensitivity at each rate of `FROC_GRID` in every bootstrap sample: (draws, M)."""
    false_cluster_thresholds = np.concatenate([s.clusters.false_cluster_thresholds for s in known])
    owners = np.repeat(np.arange(len(known)), [len(s.clusters.false_cluster_thresholds) for s in known])
    # Higher rates than the last of the grid are not needed; four times as many clusters suffice for any sample.
    falling = np.argsort(-false_cluster_thresholds, kind="stable")[: int(4 * FROC_GRID[-1] * len(known)) + 1]
    false_cluster_thresholds, owners = false_cluster_thresholds[falling], owners[falling]
    found_at = np.concatenate([s.found_at for s in known])
    lesion_owners = np.repeat(np.arange(len(known)), [len(s.found_at) for s in known])
    order = np.argsort(found_at, kind="stable")
    found_at, lesion_owners = found_at[order], lesion_owners[order]
    draws = np.full((len(weights), len(FROC_GRID)), np.nan)
    for draw, weight in enumerate(weights):
        first_too_many = np.searchsorted(np.cumsum(weight[owners]), FROC_GRID * weight.sum() + 1e-9, side="right")
        limits = np.append(false_cluster_thresholds, -np.inf)[first_too_many].astype(np.float32)
        found = np.append(np.cumsum(weight[lesion_owners][::-1])[::-1], 0)
        if found[0] > 0:
            draws[draw] = found[np.searchsorted(found_at, limits, side="right")] / found[0]
    return draws
