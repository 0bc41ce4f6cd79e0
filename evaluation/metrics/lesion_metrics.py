"""Clusters of a map against lesions, at every threshold at once.

Voxels are added from the highest score down and joined to their 26 neighbours in a union-find forest. After each
distinct score the forest *is* the set of clusters at that threshold, so a single pass gives the number of clusters,
the number of false ones, for each lesion the highest threshold at which it is found, and which clusters overlap which
lesions by how much: for all thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment

from . import kernels
from .components import neighbour_steps

FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False clusters a subject at which a FROC score averages the sensitivity."""


@dataclass(frozen=True, eq=False)
class ClusterCurve:
    """Clusters of one scan's map against the threshold.

    A cluster is a 26-connected set of voxels of at least the smallest volume; it is false if it touches no lesion
    voxel. A lesion is found as soon as one of its voxels lies in a cluster ("any overlap").

    Attributes
    ----------
    thresholds : ndarray of float32, (E,)
        Falling; the numbers hold from this score down to just above the next.
    clusters, false_clusters : ndarray of int32, (E,)
    """

    thresholds: np.ndarray
    clusters: np.ndarray
    false_clusters: np.ndarray

    def clusters_at(self, threshold: np.ndarray | float) -> np.ndarray:
        return self._at(self.clusters, threshold)

    def false_clusters_at(self, threshold: np.ndarray | float) -> np.ndarray:
        return self._at(self.false_clusters, threshold)

    @cached_property
    def false_cluster_thresholds(self) -> np.ndarray:
        """Scores at which the largest number of false clusters so far grows by one; falling.

        That envelope, not the number itself, sets an operating point: far below any sensible threshold all clusters
        flow together and their number falls to 1 again.
        """
        envelope = np.maximum.accumulate(self.false_clusters, dtype=np.int64)
        return np.repeat(self.thresholds, np.diff(envelope, prepend=0)) if len(envelope) else self.thresholds

    def _at(self, counts: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
        reached = np.searchsorted(-self.thresholds, -np.asarray(threshold, dtype=np.float32), side="right")
        return np.append(0, counts)[reached]


@dataclass(frozen=True, eq=False)
class LesionOverlaps:
    """Pairs of a cluster and a lesion with an IoU of at least 0.1, and the thresholds at which they are such a pair.

    Attributes
    ----------
    highest, below : ndarray of float32, (R,)
        A row holds at thresholds t with ``below < t <= highest``.
    cluster, lesion : ndarray of int32, (R,)
        A name for the cluster; the number of the lesion, from 1.
    hundredths : ndarray of uint8, (R,)
        The IoU, rounded down.
    """

    highest: np.ndarray
    below: np.ndarray
    cluster: np.ndarray
    lesion: np.ndarray
    hundredths: np.ndarray

    def matched_at(self, thresholds: np.ndarray, n_lesions: int) -> np.ndarray:
        """Which lesions are matched one to one with a cluster, so that the sum of the IoUs is largest.

        Returns
        -------
        ndarray of bool, (number of thresholds, n_lesions)
        """
        different, inverse = np.unique(np.asarray(thresholds, dtype=np.float32), return_inverse=True)
        matched = np.zeros((len(different), n_lesions), dtype=bool)
        for row, threshold in enumerate(different):
            now = np.flatnonzero((self.highest >= threshold) & (self.below < threshold))
            _, lesion, often = np.unique(self.lesion[now], return_inverse=True, return_counts=True)
            _, cluster, shared = np.unique(self.cluster[now], return_inverse=True, return_counts=True)
            # Where neither the lesion nor the cluster has another choice there is nothing to solve.
            contested = (often[lesion] > 1) | (shared[cluster] > 1)
            matched[row, self.lesion[now[~contested]] - 1] = True
            if contested.any():
                pairs = now[contested]
                lesions, lesion = np.unique(self.lesion[pairs], return_inverse=True)
                clusters, cluster = np.unique(self.cluster[pairs], return_inverse=True)
                gain = np.zeros((len(lesions), len(clusters)))
                # Of two ways with the same sum the one with more pairs.
                gain[lesion, cluster] = self.hundredths[pairs] + 1e-4
                rows, columns = linear_sum_assignment(gain, maximize=True)
                matched[row, lesions[rows[gain[rows, columns] > 0]] - 1] = True
        return matched[inverse]


def cluster_curve(
    scores: np.ndarray, lesion_labels: np.ndarray, *, smallest_voxels: int = 1, any_lesion: np.ndarray | None = None
) -> tuple[ClusterCurve, np.ndarray, LesionOverlaps]:
    """Follow the clusters of a map from the highest threshold down.

    Parameters
    ----------
    scores : ndarray of float32, (X, Y, Z)
        -inf where there is no score: never part of a cluster.
    lesion_labels : ndarray of int32, (X, Y, Z)
        0, or the number of the lesion, from 1.
    smallest_voxels : int
        Smaller sets of voxels are no cluster.
    any_lesion : ndarray of bool, (X, Y, Z), optional
        Truth including lesions that are too small to be numbered: a cluster on them is not false.

    Returns
    -------
    ClusterCurve
    ndarray of float32, (number of lesions,)
        The highest threshold at which each lesion is found; -inf if at none.
    LesionOverlaps
    """
    scored = scores > -np.inf
    lesion_sizes = np.bincount(lesion_labels[lesion_labels > 0], minlength=1)[1:]
    # A frame of one voxel without a score: neighbours can then be found by offset alone.
    occupied = [np.flatnonzero(scored.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0) for places in occupied)
    framed = np.pad(scores[box].astype(np.float32, copy=False), 1, constant_values=-np.inf)
    labels = np.pad(lesion_labels[box].astype(np.int32, copy=False), 1).ravel()
    touches = labels > 0 if any_lesion is None else (labels > 0) | np.pad(any_lesion[box], 1).ravel()
    values = framed.ravel()
    voxels = np.flatnonzero(values > -np.inf).astype(np.int32)
    _, places = kernels.sorted_order(values[voxels], True)
    steps = neighbour_steps(framed.shape)
    thresholds, clusters, false_clusters, found, *rows = kernels.grow_clusters(
        values, voxels[places[::-1]], labels, touches, lesion_sizes, steps, max(smallest_voxels, 1)
    )
    highest, below, cluster, lesion, step = rows
    overlaps = LesionOverlaps(highest, below, cluster, lesion + np.int32(1), step.astype(np.uint8))
    return ClusterCurve(thresholds, clusters, false_clusters), found, overlaps


def operating_threshold(
    false_cluster_thresholds: Sequence[np.ndarray], false_clusters: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """The lowest threshold at which, there and anywhere above, a healthy brain has at most so many clusters.

    Parameters
    ----------
    births : sequence of H ndarray
        `ClusterCurve.false_cluster_thresholds` of healthy scans: every cluster is false.
    false_clusters : float
        Allowed on average over the scans.
    weights : ndarray, (draws, H), optional
        How often each scan counts; once each by default.

    Returns
    -------
    ndarray of float32, (draws,)
        NaN where even with every voxel flagged there are no more clusters than allowed: nothing sets a threshold.
    """
    weights = np.ones((1, len(false_cluster_thresholds))) if weights is None else np.asarray(weights, dtype=np.float64)
    scores, owners = _falling(false_cluster_thresholds)
    thresholds = np.full(len(weights), np.nan, dtype=np.float32)
    for draw, weight in enumerate(weights):
        over = np.cumsum(weight[owners]) > false_clusters * weight.sum() + 1e-9
        if over.any():
            # This score already flags one cluster too many: the threshold lies just above it.
            thresholds[draw] = np.nextafter(scores[over.argmax()], np.float32(np.inf))
    return thresholds


def froc_curve(
    false_cluster_thresholds: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity for lesions against false clusters a subject (envelope of their number).

    Parameters
    ----------
    births : sequence of S ndarray
        `ClusterCurve.false_cluster_thresholds` of each scan, those without lesions included.
    found : sequence of S ndarray
        The scores at which the lesions of each scan are found.

    Returns
    -------
    rates, sensitivities : ndarray
        Ascending; a step function. It begins with the sensitivity that costs no false cluster.
    """
    scores, _ = _falling(false_cluster_thresholds)
    detections = np.sort(np.concatenate(list(found)))
    # Before the k-th false cluster appears, all lesions found above its score are there.
    above = len(detections) - np.searchsorted(detections, scores, side="right")
    total = np.append(above, np.isfinite(detections).sum())
    return np.arange(len(scores) + 1) / len(false_cluster_thresholds), total / len(detections)


def froc_scores(
    false_cluster_thresholds: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    weights: np.ndarray,
    at: Sequence[float] = FROC_RATES,
) -> np.ndarray:
    """Mean sensitivity at so many false clusters a subject, for every row of `weights`.

    Parameters
    ----------
    births, found
        As for `froc_curve`.
    weights : ndarray, (draws, S)
    at : sequence of float

    Returns
    -------
    ndarray, (draws,)
        NaN where a draw holds no lesion.
    """
    scores, owners = _falling(false_cluster_thresholds)
    detections, lesion_owners = _falling(found)
    rates, values = np.array(at), np.full(len(weights), np.nan)
    for draw, weight in enumerate(weights):
        clusters = np.cumsum(weight[owners])
        # The first false cluster that is one too many for each rate; lesions found above its score are there before.
        first = np.searchsorted(clusters, rates * weight.sum() + 1e-9, side="right")
        limits = np.append(scores, np.float32(-np.inf))[first]
        hits = np.append(0, np.cumsum(weight[lesion_owners]))
        if hits[-1] > 0:
            values[draw] = np.mean(hits[np.searchsorted(-detections, -limits, side="left")]) / hits[-1]
    return values


def _falling(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All scores together, the highest first, and whose each is."""
    joined = np.concatenate([np.zeros(0, np.float32), *scores])
    owners = np.repeat(np.arange(len(scores)), np.array([len(part) for part in scores], dtype=np.int64))
    order = np.argsort(-joined, kind="stable")
    return joined[order], owners[order]
