"""Suprathreshold clusters of one subject's anomaly map, highest peak first."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from .components import find_lesions

MOST_VOXELS = 1000
"""Voxels of a cluster whose positions are kept."""


@dataclass(frozen=True)
class Cluster:
    """26-connected cluster of voxels at or above a threshold.

    Attributes
    ----------
    rank : int
        Starting at 1, in descending order of the peak score.
    volume_mm3 : float
        Volume on the grid of the map.
    peak_score, mean_score : float
        Higher = more anomalous.
    peak_mm : tuple of float, (3,)
        Position of the highest score, in RAS+ mm of the map's space.
    in_lesion : float or None
        Fraction of its voxels inside the lesion mask; None without a lesion mask.
    p_value : float or None
        Family-wise p-value: the fraction of brains, among the healthy ones and this one, with a cluster at least as
        large anywhere at this threshold. None without healthy brains.
    smallest_p : float or None
        The smallest p-value that this number of healthy brains allows: that of a cluster larger than all of theirs.
    voxels_mm : array, (N, 3)
        Positions of its voxels, in RAS+ mm of the map's space: all, or `MOST_VOXELS` evenly spread ones.
    parts : tuple of int
        If it is a part of a connected cluster (see `cluster_parts`), the ranks of all parts, its own among them. Its
        `p_value` is that of the whole cluster.
    whole_mm3 : float or None
        Volume of the whole cluster that it is a part of; None if it is no part.
    """

    rank: int
    volume_mm3: float
    peak_score: float
    mean_score: float
    peak_mm: tuple[float, float, float]
    in_lesion: float | None = None
    p_value: float | None = None
    voxels_mm: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)), compare=False, repr=False)
    parts: tuple[int, ...] = ()
    whole_mm3: float | None = None
    smallest_p: float | None = None


def find_clusters(
    map: Volume,
    threshold: float,
    inside: Volume,
    *,
    smallest_mm3: float = 0.0,
    lesion_mask: Volume | None = None,
    largest_healthy_mm3: Sequence[float] = (),
) -> tuple[Cluster, ...]:
    """List the clusters of a thresholded map; see `label_clusters`."""
    return label_clusters(
        map,
        threshold,
        inside,
        smallest_mm3=smallest_mm3,
        lesion_mask=lesion_mask,
        largest_healthy_mm3=largest_healthy_mm3,
    )[0]


def label_clusters(
    map: Volume,
    threshold: float,
    inside: Volume,
    *,
    smallest_mm3: float = 0.0,
    lesion_mask: Volume | None = None,
    largest_healthy_mm3: Sequence[float] = (),
) -> tuple[tuple[Cluster, ...], Volume]:
    """List and number the clusters of a thresholded map.

    The clusters are the same as those counted by `lesion_metrics.cluster_curve`, so a subject's page and the cohort
    table agree.

    Parameters
    ----------
    map : Volume
        Anomaly scores, higher = more anomalous.
    threshold : float
        Voxels with a score of at least this value are flagged.
    inside : Volume of bool
        Voxels of the evaluation mask for which the map has a score.
    smallest_mm3 : float
        Smaller clusters are left out.
    lesion_mask : Volume of bool, optional
    largest_healthy_mm3 : sequence of float, optional
        Volume of the largest cluster of each healthy brain at the same threshold; 0 if it has none.

    Returns
    -------
    clusters : tuple of Cluster
        Highest peak first.
    labels : Volume of int32
        Rank of the cluster at each of its voxels; 0 elsewhere.
    """
    flagged = inside.voxels.astype(bool) & (map.voxels >= np.float32(threshold))
    components = find_lesions(map.with_voxels(flagged), smallest_mm3=smallest_mm3)
    clusters, labels = ranked(map, components.labels, lesion_mask)
    healthy = np.asarray(largest_healthy_mm3, dtype=np.float64)
    if len(healthy):
        smallest = _share_as_large(np.inf, healthy)
        clusters = tuple(
            replace(c, p_value=_share_as_large(c.volume_mm3, healthy), smallest_p=smallest) for c in clusters
        )
    return clusters, map.with_voxels(labels)


def ranked(
    map: Volume, labels: np.ndarray, lesion_mask: Volume | None = None
) -> tuple[tuple[Cluster, ...], np.ndarray]:
    """Measure labelled sets of voxels, and number them from the highest peak down; without p-values.

    Parameters
    ----------
    map : Volume
    labels : ndarray of int, (X, Y, Z)
        Numbers from 1 without gaps; 0 elsewhere. Of equal peaks, the lower number comes first.
    lesion_mask : Volume of bool, optional

    Returns
    -------
    clusters : tuple of Cluster
    labels : ndarray of int32, (X, Y, Z)
        Ranks.
    """
    boxes = ndimage.find_objects(labels)
    numbers = np.arange(1, len(boxes) + 1)
    if not len(numbers):
        return (), labels.astype(np.int32)
    # Few voxels of a map belong to clusters, and the functions of ndimage sort all that they are given.
    place = np.flatnonzero(labels)
    own = labels.ravel()[place]

    def of_clusters(volume: Volume) -> np.ndarray:
        return volume.voxels.ravel()[place]

    def per_cluster(measure, values: np.ndarray) -> np.ndarray:
        return np.asarray(measure(values, own, numbers), dtype=np.float64)

    scores = of_clusters(map)
    highest = highest_voxels(map.voxels, labels, numbers)
    peaks = map.voxels[tuple(highest.T)].astype(np.float64)
    means = per_cluster(ndimage.mean, scores.astype(np.float64))
    sizes = np.bincount(own, minlength=len(numbers) + 1)[1:]
    peaks_mm = highest @ map.affine[:3, :3].T + map.affine[:3, 3]
    shares = per_cluster(ndimage.mean, of_clusters(lesion_mask).astype(np.float64)) if lesion_mask is not None else None
    order = np.argsort(-peaks, kind="stable")
    rank_of = np.zeros(len(numbers) + 1, np.int32)
    rank_of[order + 1] = numbers
    clusters = tuple(
        Cluster(
            rank=rank,
            volume_mm3=float(sizes[i] * map.grid.voxel_volume_mm3),
            peak_score=float(peaks[i]),
            mean_score=float(means[i]),
            peak_mm=_triple(peaks_mm[i]),
            in_lesion=None if shares is None else float(shares[i]),
            voxels_mm=_positions(labels[boxes[i]] == i + 1, boxes[i], map.affine),
        )
        for rank, i in enumerate(order, start=1)
    )
    return clusters, rank_of[labels]


def highest_voxels(scores: np.ndarray, labels: np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the index of the highest score of each labelled set of voxels, (n, 3).

    Of several equal ones, as in a map that is flat at its top, the one nearest to their centre.
    """
    place = np.flatnonzero(labels)
    own, values = labels.ravel()[place], scores.ravel()[place]
    highest = np.full(int(own.max(initial=0)) + 1, -np.inf)
    np.maximum.at(highest, own, values)
    top = values == highest[own]
    own, index = own[top], np.stack(np.unravel_index(place[top], labels.shape), axis=1)
    count = np.maximum(np.bincount(own), 1)
    centre = np.stack([np.bincount(own, weights=axis) for axis in index.T], axis=1) / count[:, None]
    order = np.lexsort((np.square(index - centre[own]).sum(axis=1), own))  # stable
    return index[order[np.searchsorted(own[order], numbers)]]


def _positions(cluster: np.ndarray, box: tuple[slice, ...], affine: np.ndarray) -> np.ndarray:
    index = np.argwhere(cluster) + [part.start for part in box]
    if len(index) > MOST_VOXELS:
        index = index[np.linspace(0, len(index) - 1, MOST_VOXELS).round().astype(int)]
    return index @ affine[:3, :3].T + affine[:3, 3]


def _share_as_large(volume_mm3: float, healthy_mm3: np.ndarray) -> float:
    # The tolerance covers rounding of volumes on the same grid.
    return float(1 + (healthy_mm3 >= volume_mm3 - 1e-6).sum()) / (1 + len(healthy_mm3))


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(mm) for mm in point)
    return x, y, z
