"""Lesions: the connected components of the truth."""

from dataclasses import dataclass

import numpy as np
from skimage import measure

from ..data_manifests.volume import Volume


@dataclass(frozen=True)
class Lesion:
    """One connected component of a lesion mask.

    Attributes
    ----------
    number : int
        From 1 in the order of falling volume.
    voxels : int
    volume_mm3 : float
    centre_mm : tuple of float, (3,)
        Centre of mass in RAS+ millimetres of the grid that the mask lies on.
    """

    number: int
    voxels: int
    volume_mm3: float
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Lesions:
    """All lesions of one scan.

    Attributes
    ----------
    lesions : tuple of Lesion
        Largest first.
    labels : ndarray of int32, (X, Y, Z)
        The lesion's number; 0 outside, and in components too small to count.
    """

    lesions: tuple[Lesion, ...]
    labels: np.ndarray


def find_lesions(mask: Volume, *, smallest_mm3: float = 0.0) -> Lesions:
    """Number the 26-connected components of a mask.

    Parameters
    ----------
    mask : Volume of bool
    smallest_mm3 : float
        Components below this volume are left out.
    """
    # 26-connected: voxels that share a face, an edge or a corner are one lesion.
    components = np.asarray(measure.label(mask.voxels, connectivity=3))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    voxel_mm3 = mask.grid.voxel_volume_mm3
    # A component of exactly the smallest volume counts, whatever the affine's rounding.
    counted = np.flatnonzero((sizes > 0) & (sizes * voxel_mm3 >= smallest_mm3 * (1 - 1e-6)))
    counted = counted[np.argsort(-sizes[counted], kind="stable")]
    number_of = np.zeros(len(sizes), dtype=np.int32)
    number_of[counted] = np.arange(1, len(counted) + 1)
    labels = number_of[components]
    places = np.argwhere(labels > 0)
    owners = labels[labels > 0]
    sums = np.array([np.bincount(owners, weights=axis, minlength=len(counted) + 1) for axis in places.T])
    lesions = []
    for number, component in enumerate(counted, start=1):
        voxels = int(sizes[component])
        x, y, z = mask.affine[:3, :3] @ (sums[:, number] / voxels) + mask.affine[:3, 3]
        lesions.append(Lesion(number, voxels, voxels * voxel_mm3, (float(x), float(y), float(z))))
    return Lesions(tuple(lesions), labels)
