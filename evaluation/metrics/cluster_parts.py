"""Clusters split at their peaks, for people who read a map: a cluster over both ventricles is two findings.

What is counted, and p-values, refer to whole clusters (`clusters.label_clusters`), as does the threshold.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from ...data_manifests.images.volume import Volume
from .clusters import Cluster, label_clusters, ranked

RISE = 1.5
"""How far a peak has to rise above the saddle towards a higher peak, as a ratio of heights.

The height of a voxel is its score minus the threshold, plus 1, which is a standard deviation of healthy voxels. So a
peak 0.5 above the threshold is a part of its own if the saddle lies at the threshold, and a peak 5 above it if the
saddle is at most 3 above. A fixed difference would cut a bright, uneven lesion into pieces, or leave two faint spots
that a thin bridge joins in one.
"""
CLOSEST_MM = 10.0
"""Smallest distance of two peaks, about the width of a gyrus: closer peaks are one place to a reader."""

_NEIGHBOURS = np.ones((3, 3, 3), bool)


def label_findings(
    map: Volume,
    threshold: float,
    inside: Volume,
    *,
    smallest_mm3: float = 0.0,
    lesion_mask: Volume | None = None,
    largest_healthy_mm3: Sequence[float] = (),
) -> tuple[tuple[Cluster, ...], Volume]:
    """List and number the clusters of a thresholded map, split at their peaks by a watershed of the score.

    Peaks are the maxima that rise enough above their saddles (`RISE`, the h-maxima of the logarithm of the height) and
    lie at least `CLOSEST_MM` from every higher peak. A peak whose part would be smaller than the smallest cluster is
    given up, that of the smallest part first. The parts of a cluster are disjoint, 26-connected, and together the
    cluster.

    Parameters
    ----------
    map, threshold, inside, smallest_mm3, lesion_mask, largest_healthy_mm3
        As in `label_clusters`.

    Returns
    -------
    findings : tuple of Cluster
        Whole clusters and parts of clusters, highest peak first. The p-value of a part is that of its cluster.
    labels : Volume of int32
        Rank of the finding at each of its voxels; 0 elsewhere.
    """
    clusters, labels = label_clusters(
        map, threshold, inside, smallest_mm3=smallest_mm3, largest_healthy_mm3=largest_healthy_mm3
    )
    numbers = np.zeros(labels.voxels.shape, np.int32)
    whole_of: list[Cluster] = []
    for cluster, box in zip(clusters, ndimage.find_objects(labels.voxels), strict=True):
        inside_box = labels.voxels[box] == cluster.rank
        parts = _parts(map.voxels[box], inside_box, threshold, map, smallest_mm3)
        numbers[box][inside_box] = parts[inside_box] + len(whole_of)
        whole_of += [cluster] * int(parts.max())
    found, ranks = ranked(map, numbers, lesion_mask)
    return _with_wholes(found, numbers, ranks, whole_of), map.with_voxels(ranks)


def _parts(scores: np.ndarray, inside: np.ndarray, threshold: float, map: Volume, smallest_mm3: float) -> np.ndarray:
    """Return the numbers of the parts of one cluster, from 1; all ones if it is not split."""
    height = np.where(inside, np.log(np.maximum(scores - np.float32(threshold), 0) + 1), 0).astype(np.float64)
    whole = inside.astype(np.int32)
    # A frame, so that a peak at the border of the box is seen as one.
    maxima = np.asarray(label(h_maxima(np.pad(height, 1), np.log(RISE), _NEIGHBOURS), connectivity=3))
    many = int(np.max(maxima))
    if many < 2:
        return whole
    maxima = maxima[1:-1, 1:-1, 1:-1]
    peaks = np.array(ndimage.maximum_position(height, maxima, np.arange(1, many + 1)))
    peaks = _far_apart(peaks[np.argsort(-height[tuple(peaks.T)], kind="stable")], map)
    smallest = smallest_mm3 * (1 - 1e-6) / map.grid.voxel_volume_mm3
    while len(peaks) > 1:
        markers = np.zeros(inside.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        parts = watershed(-height, markers, connectivity=3, mask=inside).astype(np.int32)
        sizes = np.bincount(parts[inside], minlength=len(peaks) + 1)[1:]
        if sizes.min() >= smallest:
            return parts
        # Of equal sizes, the lower peak is given up; peaks are sorted.
        peaks = np.delete(peaks, len(sizes) - 1 - int(sizes[::-1].argmin()), axis=0)
    return whole


def _far_apart(peaks: np.ndarray, map: Volume) -> np.ndarray:
    """Keep the peaks that lie far enough from every higher one that is kept; `peaks` are sorted, highest first."""
    places = peaks @ map.affine[:3, :3].T
    kept: list[int] = []
    for i, place in enumerate(places):
        if all(np.linalg.norm(place - places[other]) >= CLOSEST_MM for other in kept):
            kept.append(i)
    return peaks[kept]


def _with_wholes(
    found: tuple[Cluster, ...], numbers: np.ndarray, ranks: np.ndarray, whole_of: Sequence[Cluster]
) -> tuple[Cluster, ...]:
    """Add what each finding has of its whole cluster; `numbers` and `ranks` number the same findings."""
    number_of = np.zeros(len(found) + 1, int)
    number_of[ranks] = numbers
    wholes = [whole_of[number - 1] for number in number_of[1:]]
    ranks_of: dict[int, list[int]] = {}
    for finding, whole in zip(found, wholes, strict=True):
        ranks_of.setdefault(whole.rank, []).append(finding.rank)
    with_wholes = []
    for finding, whole in zip(found, wholes, strict=True):
        parts = tuple(ranks_of[whole.rank])
        if len(parts) > 1:
            of_whole = {"p_value": whole.p_value, "smallest_p": whole.smallest_p, "whole_mm3": whole.volume_mm3}
            own = replace(finding, parts=parts, **of_whole)
        else:
            # Of equal scores, the peak is that of the cluster.
            own = replace(whole, rank=finding.rank, in_lesion=finding.in_lesion)
        with_wholes.append(own)
    return tuple(with_wholes)
