"""Suspicious clusters: what of one subject's map lies above a threshold, largest score first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from .components import find_lesions


@dataclass(frozen=True)
class Cluster:
    """A 26-connected set of voxels at or above a threshold.

    Attributes
    ----------
    rank : int
        From 1 in the order of falling peak score.
    volume_mm3 : float
        On the grid of the map.
    peak_score, mean_score : float
        Higher = more anomalous.
    peak_mm : tuple of float, (3,)
        The voxel of the highest score, in RAS+ mm of the map's space.
    in_lesion : float or None
        Share of its voxels inside the lesion mask; None where there is none.
    p_value : float or None
        Share of brains with a cluster at least as large at this threshold, this one and the healthy ones: the chance
        that a healthy brain shows such a one anywhere. None where no healthy brain is known.
    """

    rank: int
    volume_mm3: float
    peak_score: float
    mean_score: float
    peak_mm: tuple[float, float, float]
    in_lesion: float | None = None
    p_value: float | None = None


def find_clusters(
    map: Volume,
    threshold: float,
    inside: Volume,
    *,
    smallest_mm3: float = 0.0,
    lesion_mask: Volume | None = None,
    largest_healthy_mm3: Sequence[float] = (),
) -> tuple[Cluster, ...]:
    """List the clusters of a thresholded map.

    They are those that `lesion_metrics.cluster_curve` counts: what a cohort's table says of a subject is what its own
    page lists.

    Parameters
    ----------
    map : Volume
        Anomaly score, higher = more anomalous.
    threshold : float
        A voxel with exactly this score is flagged.
    inside : Volume of bool
        Voxels that count: the evaluation mask where the map carries a score.
    smallest_mm3 : float
        Smaller clusters are left out.
    lesion_mask : Volume of bool, optional
    largest_healthy_mm3 : sequence of float, optional
        The largest cluster of each of some healthy brains, at the same threshold; 0 where there is none.

    Returns
    -------
    tuple of Cluster
    """
    flagged = inside.voxels.astype(bool) & (map.voxels >= np.float32(threshold))
    components = find_lesions(map.with_voxels(flagged), smallest_mm3=smallest_mm3)
    numbers = np.arange(1, len(components.lesions) + 1)
    if not len(numbers):
        return ()

    def of_each(measure, voxels: np.ndarray) -> np.ndarray:
        return np.asarray(measure(voxels, components.labels, numbers), dtype=np.float64)

    peaks = of_each(ndimage.maximum, map.voxels)
    means = of_each(ndimage.mean, map.voxels.astype(np.float64))
    places = np.array(ndimage.maximum_position(map.voxels, components.labels, numbers))
    places_mm = places @ map.affine[:3, :3].T + map.affine[:3, 3]
    shares = of_each(ndimage.mean, lesion_mask.voxels.astype(np.float64)) if lesion_mask is not None else None
    healthy = np.asarray(largest_healthy_mm3, dtype=np.float64)
    order = np.argsort(-peaks, kind="stable")
    return tuple(
        Cluster(
            rank=rank,
            volume_mm3=components.lesions[i].volume_mm3,
            peak_score=float(peaks[i]),
            mean_score=float(means[i]),
            peak_mm=_triple(places_mm[i]),
            in_lesion=None if shares is None else float(shares[i]),
            p_value=_share_as_large(components.lesions[i].volume_mm3, healthy) if len(healthy) else None,
        )
        for rank, i in enumerate(order, start=1)
    )


def _share_as_large(volume_mm3: float, healthy_mm3: np.ndarray) -> float:
    # Volumes of one grid differ by rounding alone.
    return float(1 + (healthy_mm3 >= volume_mm3 - 1e-6).sum()) / (1 + len(healthy_mm3))


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(mm) for mm in point)
    return x, y, z
