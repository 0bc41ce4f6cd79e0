"""Clusters of a map against lesions, at every threshold at once.

Voxels are added from the highest score down and joined to their 26 neighbours in a union-find forest. After each
distinct score the forest *is* the set of clusters at that threshold, so a single pass gives the number of clusters,
the number of false ones, and for each lesion the highest threshold at which it is found, exactly, for all thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

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
    def false_births(self) -> np.ndarray:
        """Scores at which the largest number of false clusters so far grows by one; falling.

        That envelope, not the number itself, sets an operating point: far below any sensible threshold all clusters
        flow together and their number falls to 1 again.
        """
        envelope = np.maximum.accumulate(self.false_clusters, dtype=np.int64)
        return np.repeat(self.thresholds, np.diff(envelope, prepend=0)) if len(envelope) else self.thresholds

    def _at(self, counts: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
        reached = np.searchsorted(-self.thresholds, -np.asarray(threshold, dtype=np.float32), side="right")
        return np.append(0, counts)[reached]


def cluster_curve(
    scores: np.ndarray, lesion_labels: np.ndarray, *, smallest_voxels: int = 1, any_lesion: np.ndarray | None = None
) -> tuple[ClusterCurve, np.ndarray]:
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
    """
    truth = lesion_labels > 0 if any_lesion is None else any_lesion | (lesion_labels > 0)
    n_lesions = int(lesion_labels.max(initial=0))
    scored = scores > -np.inf
    if not scored.any():
        nothing = ClusterCurve(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32))
        return nothing, np.full(n_lesions, -np.inf, dtype=np.float32)
    # A frame of one voxel without a score: neighbours can then be found by offset alone.
    occupied = [np.unique(axis) for axis in np.nonzero(scored)]
    box = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in occupied)
    framed = np.pad(scores[box].astype(np.float32), 1, constant_values=-np.inf)
    labels = np.pad(lesion_labels[box].astype(np.int32), 1).ravel()
    touches = np.pad(truth[box], 1).ravel()
    _, size_y, size_z = framed.shape
    steps = np.array([(x * size_y + y) * size_z + z for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    values = framed.ravel()
    order = np.flatnonzero(values > -np.inf)
    order = order[np.argsort(-values[order], kind="stable")].astype(np.int32)
    thresholds, clusters, false_clusters, found = _grow(
        values, order, labels, touches, steps[steps != 0], max(smallest_voxels, 1), n_lesions
    )
    return ClusterCurve(thresholds, clusters, false_clusters), found


def operating_threshold(
    healthy: Sequence[ClusterCurve], false_clusters: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """The lowest threshold at which, there and anywhere above, a healthy brain has at most so many clusters.

    Parameters
    ----------
    healthy : sequence of H ClusterCurve
        Of healthy scans: every cluster is false.
    false_clusters : float
        Allowed on average over the scans.
    weights : ndarray, (draws, H), optional
        How often each scan counts; once each by default.

    Returns
    -------
    ndarray of float32, (draws,)
        NaN where even with every voxel flagged there are no more clusters than allowed: nothing sets a threshold.
    """
    weights = np.ones((1, len(healthy))) if weights is None else np.asarray(weights, dtype=np.float64)
    births = np.concatenate([curve.false_births for curve in healthy])
    owners = np.repeat(np.arange(len(healthy)), [len(curve.false_births) for curve in healthy])
    falling = np.argsort(-births, kind="stable")
    births, owners = births[falling], owners[falling]
    thresholds = np.full(len(weights), np.nan, dtype=np.float32)
    for draw, weight in enumerate(weights):
        over = np.cumsum(weight[owners]) > false_clusters * weight.sum() + 1e-9
        if over.any():
            # This score already flags one cluster too many: the threshold lies just above it.
            thresholds[draw] = np.nextafter(births[over.argmax()], np.float32(np.inf))
    return thresholds


def froc_curve(curves: Sequence[ClusterCurve], found: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity for lesions against false clusters a subject (envelope of their number).

    Parameters
    ----------
    curves : sequence of S ClusterCurve
        One a scan, those without lesions included.
    found : sequence of S ndarray
        The scores at which the lesions of each scan are found.

    Returns
    -------
    rates, sensitivities : ndarray
        Ascending; a step function. It begins with the sensitivity that costs no false cluster.
    """
    births = -np.sort(-np.concatenate([curve.false_births for curve in curves]))
    detections = np.sort(np.concatenate(list(found)))
    # Before the k-th false cluster appears, all lesions found above its score are there.
    above = len(detections) - np.searchsorted(detections, births, side="right")
    total = np.append(above, np.isfinite(detections).sum())
    return np.arange(len(births) + 1) / len(curves), total / len(detections)


def sensitivity_at(rate: float, rates: np.ndarray, sensitivities: np.ndarray) -> float:
    """Sensitivity of a FROC curve at so many false clusters a subject."""
    return float(sensitivities[np.searchsorted(rates, rate + 1e-9, side="right") - 1])


@numba.njit(cache=True, nogil=True)
def _find(parent, voxel):
    while parent[voxel] != voxel:
        parent[voxel] = parent[parent[voxel]]
        voxel = parent[voxel]
    return voxel


@numba.njit(cache=True, nogil=True)
def _mark_found(following, start, labels, found, score):
    voxel = start
    while True:
        label = labels[voxel]
        if label > 0 and found[label - 1] == -np.inf:
            found[label - 1] = score
        voxel = following[voxel]
        if voxel == start:
            return


@numba.njit(cache=True, nogil=True)
def _grow(values, order, labels, touches, steps, smallest, n_lesions):
    parent = np.full(len(values), -1, dtype=np.int32)
    size = np.zeros(len(values), dtype=np.int32)
    # The voxels of a tree in a ring, so that they can be listed once, when the tree becomes a cluster.
    following = np.zeros(len(values), dtype=np.int32)
    on_lesion = touches.copy()
    found = np.full(n_lesions, -np.inf, dtype=np.float32)
    thresholds = np.empty(len(order), dtype=np.float32)
    cluster_events = np.empty(len(order), dtype=np.int32)
    false_events = np.empty(len(order), dtype=np.int32)
    events, clusters, false_clusters = 0, 0, 0
    last_clusters, last_false = 0, 0
    for k in range(len(order)):
        voxel = order[k]
        score = values[voxel]
        parent[voxel] = voxel
        following[voxel] = voxel
        size[voxel] = 1
        root = voxel
        if smallest <= 1:
            clusters += 1
            if not on_lesion[voxel]:
                false_clusters += 1
            _mark_found(following, voxel, labels, found, score)
        for step in steps:
            neighbour = voxel + step
            if parent[neighbour] < 0:
                continue
            other = _find(parent, neighbour)
            if other == root:
                continue
            for side in (root, other):
                if size[side] >= smallest:
                    clusters -= 1
                    if not on_lesion[side]:
                        false_clusters -= 1
            if size[root] + size[other] >= smallest:
                for side in (root, other):
                    if size[side] < smallest:
                        _mark_found(following, side, labels, found, score)
            if size[root] < size[other]:
                root, other = other, root
            parent[other] = root
            size[root] += size[other]
            following[root], following[other] = following[other], following[root]
            on_lesion[root] = on_lesion[root] or on_lesion[other]
            if size[root] >= smallest:
                clusters += 1
                if not on_lesion[root]:
                    false_clusters += 1
        last_of_its_score = k + 1 == len(order) or values[order[k + 1]] != score
        if last_of_its_score and (clusters != last_clusters or false_clusters != last_false):
            thresholds[events] = score
            cluster_events[events] = clusters
            false_events[events] = false_clusters
            events += 1
            last_clusters, last_false = clusters, false_clusters
    return thresholds[:events].copy(), cluster_events[:events].copy(), false_events[:events].copy(), found
