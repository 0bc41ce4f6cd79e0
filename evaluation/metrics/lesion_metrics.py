"""Lesion-wise metrics at all thresholds in one pass.

Voxels are added in descending order of score and joined to their 26 neighbours in a union-find forest. After each
distinct score the trees of the forest are the clusters at that threshold. A single pass therefore gives, for all
thresholds, the number of clusters, the number of false clusters and the overlaps of clusters and lesions, and for each
lesion the highest threshold at which it is found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment

from . import kernels
from .components import neighbour_steps

FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False clusters per subject at which the FROC score averages the sensitivity."""


@dataclass(frozen=True, eq=False)
class ClusterCurve:
    """Number of clusters of one map as a function of the threshold.

    A cluster is a 26-connected set of voxels of at least the smallest volume. It is false if it contains no lesion
    voxel. A lesion is found if at least one of its voxels lies in a cluster ("any overlap").

    Attributes
    ----------
    thresholds : ndarray of float32, (E,)
        Descending; the counts hold from this score down to just above the next.
    clusters, false_clusters : ndarray of int32, (E,)
    """

    thresholds: np.ndarray
    clusters: np.ndarray
    false_clusters: np.ndarray

    def clusters_at(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the number of clusters at each threshold, in the shape of `threshold`."""
        return self._at(self.clusters, threshold)

    def false_clusters_at(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the number of false clusters at each threshold, in the shape of `threshold`."""
        return self._at(self.false_clusters, threshold)

    @cached_property
    def false_cluster_thresholds(self) -> np.ndarray:
        """Scores at which the running maximum of the number of false clusters grows by one; descending.

        The operating point is set on this running maximum rather than on the number itself, because at very low
        thresholds all clusters merge and their number drops to 1 again.
        """
        envelope = np.maximum.accumulate(self.false_clusters, dtype=np.int64)
        return np.repeat(self.thresholds, np.diff(envelope, prepend=0)) if len(envelope) else self.thresholds

    def _at(self, counts: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
        reached = np.searchsorted(-self.thresholds, -np.asarray(threshold, dtype=np.float32), side="right")
        return np.append(0, counts)[reached]


@dataclass(frozen=True, eq=False)
class LesionOverlaps:
    """Pairs of a cluster and a lesion with an IoU of at least 0.1, with their range of thresholds.

    Attributes
    ----------
    highest, below : ndarray of float32, (R,)
        A row holds at thresholds t with ``below < t <= highest``.
    cluster, lesion : ndarray of int32, (R,)
        Label of the cluster; number of the lesion, from 1.
    hundredths : ndarray of uint8, (R,)
        IoU in hundredths, rounded down.
    """

    highest: np.ndarray
    below: np.ndarray
    cluster: np.ndarray
    lesion: np.ndarray
    hundredths: np.ndarray

    def matched_at(self, thresholds: np.ndarray, n_lesions: int) -> np.ndarray:
        """Match lesions one to one with clusters by maximising the sum of IoUs (Hungarian algorithm).

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
            # Only pairs that share a lesion or a cluster with another pair need the assignment.
            contested = (often[lesion] > 1) | (shared[cluster] > 1)
            matched[row, self.lesion[now[~contested]] - 1] = True
            if contested.any():
                pairs = now[contested]
                lesions, lesion = np.unique(self.lesion[pairs], return_inverse=True)
                clusters, cluster = np.unique(self.cluster[pairs], return_inverse=True)
                gain = np.zeros((len(lesions), len(clusters)))
                # Ties are resolved in favour of more pairs.
                gain[lesion, cluster] = self.hundredths[pairs] + 1e-4
                rows, columns = linear_sum_assignment(gain, maximize=True)
                matched[row, lesions[rows[gain[rows, columns] > 0]] - 1] = True
        return matched[inverse]


def cluster_curve(
    scores: np.ndarray, lesion_labels: np.ndarray, *, smallest_voxels: int = 1, any_lesion: np.ndarray | None = None
) -> tuple[ClusterCurve, np.ndarray, LesionOverlaps]:
    """Count the clusters of a map at every threshold and compare them with the lesions.

    Parameters
    ----------
    scores : ndarray of float32, (X, Y, Z)
        -inf where there is no score; such voxels never belong to a cluster.
    lesion_labels : ndarray of int32, (X, Y, Z)
        Number of the lesion, from 1; 0 outside.
    smallest_voxels : int
        Minimum number of voxels of a cluster.
    any_lesion : ndarray of bool, (X, Y, Z), optional
        Lesion mask including lesions that are too small to be counted; clusters on them are not false.

    Returns
    -------
    ClusterCurve
    ndarray of float32, (number of lesions,)
        Highest threshold at which each lesion is found; -inf if at none.
    LesionOverlaps
    """
    scored = scores > -np.inf
    lesion_sizes = np.bincount(lesion_labels[lesion_labels > 0], minlength=1)[1:]
    # With a border of one voxel without a score, neighbours can be addressed by offsets.
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
    """Lowest threshold at and above which healthy brains have at most `false_clusters` clusters on average.

    Parameters
    ----------
    false_cluster_thresholds : sequence of H ndarray
        `ClusterCurve.false_cluster_thresholds` of the healthy scans, in which every cluster is false.
    false_clusters : float
        Allowed number, averaged over the scans.
    weights : ndarray, (draws, H), optional
        Weight of each scan; 1 by default.

    Returns
    -------
    ndarray of float32, (draws,)
        NaN if there are no more clusters than allowed at any threshold, which leaves the threshold undefined.
    """
    weights = np.ones((1, len(false_cluster_thresholds))) if weights is None else np.asarray(weights, dtype=np.float64)
    scores, owners = _falling(false_cluster_thresholds)
    thresholds = np.full(len(weights), np.nan, dtype=np.float32)
    for draw, weight in enumerate(weights):
        over = np.cumsum(weight[owners]) > false_clusters * weight.sum() + 1e-9
        if over.any():
            # The threshold is the next number above the first score with too many clusters.
            thresholds[draw] = np.nextafter(scores[over.argmax()], np.float32(np.inf))
    return thresholds


def froc_curve(
    false_cluster_thresholds: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Free-response ROC (FROC) curve: lesion sensitivity against false clusters per subject (running maximum).

    Parameters
    ----------
    false_cluster_thresholds : sequence of S ndarray
        `ClusterCurve.false_cluster_thresholds` of each scan, including scans without lesions.
    found : sequence of S ndarray
        Scores at which the lesions of each scan are found.

    Returns
    -------
    rates, sensitivities : ndarray
        Ascending step function. The first value is the sensitivity without any false cluster.
    """
    scores, _ = _falling(false_cluster_thresholds)
    detections = np.sort(np.concatenate(list(found)))
    # Lesions found above the score of the k-th false cluster are found before it appears.
    above = len(detections) - np.searchsorted(detections, scores, side="right")
    total = np.append(above, np.isfinite(detections).sum())
    return np.arange(len(scores) + 1) / len(false_cluster_thresholds), total / len(detections)


def froc_scores(
    false_cluster_thresholds: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    weights: np.ndarray,
    at: Sequence[float] = FROC_RATES,
) -> np.ndarray:
    """FROC score: mean sensitivity at the given false clusters per subject, for every row of `weights`.

    Parameters
    ----------
    false_cluster_thresholds, found
        As for `froc_curve`.
    weights : ndarray, (draws, S)
        Weight of each scan in each bootstrap sample.
    at : sequence of float
        False clusters per subject.

    Returns
    -------
    ndarray, (draws,)
        NaN for bootstrap samples without lesions.
    """
    scores, owners = _falling(false_cluster_thresholds)
    detections, lesion_owners = _falling(found)
    rates, values = np.array(at), np.full(len(weights), np.nan)
    for draw, weight in enumerate(weights):
        clusters = np.cumsum(weight[owners])
        # First false cluster in excess of each rate; lesions found above its score count at this rate.
        first = np.searchsorted(clusters, rates * weight.sum() + 1e-9, side="right")
        limits = np.append(scores, np.float32(-np.inf))[first]
        hits = np.append(0, np.cumsum(weight[lesion_owners]))
        if hits[-1] > 0:
            values[draw] = np.mean(hits[np.searchsorted(-detections, -limits, side="left")]) / hits[-1]
    return values


def _falling(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All scores in descending order, and the index of the array that each one comes from."""
    joined = np.concatenate([np.zeros(0, np.float32), *scores])
    owners = np.repeat(np.arange(len(scores)), np.array([len(part) for part in scores], dtype=np.int64))
    order = np.argsort(-joined, kind="stable")
    return joined[order], owners[order]
