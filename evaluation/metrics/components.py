"""Lesions as connected components of a lesion mask."""

from dataclasses import dataclass

import numpy as np

from ...data_manifests.images.volume import Volume
from . import kernels


@dataclass(frozen=True)
class Lesion:
    """Connected component of a lesion mask.

    Attributes
    ----------
    number : int
        Starting at 1, in descending order of volume.
    voxels : int
    volume_mm3 : float
    centre_mm : tuple of float, (3,)
        Centre of mass in RAS+ mm of the mask's grid.
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
        Number of the lesion; 0 outside lesions and in components below the smallest volume.
    """

    lesions: tuple[Lesion, ...]
    labels: np.ndarray


def find_lesions(mask: Volume, *, smallest_mm3: float = 0.0) -> Lesions:
    """Label the 26-connected components of a mask.

    Parameters
    ----------
    mask : Volume of bool
    smallest_mm3 : float
        Components below this volume are ignored.
    """
    labels = np.zeros(mask.voxels.shape, dtype=np.int32)
    places = np.nonzero(mask.voxels)
    if not len(places[0]):
        return Lesions((), labels)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
    framed = np.pad(mask.voxels[box].astype(bool), 1)
    steps = neighbour_steps(framed.shape)
    components, sizes = kernels.label_components(framed.ravel(), steps[steps < 0])
    components = components.reshape(framed.shape)[1:-1, 1:-1, 1:-1]
    voxel_mm3 = mask.grid.voxel_volume_mm3
    # The tolerance keeps components of exactly the smallest volume despite rounding in the affine.
    counted = np.flatnonzero((sizes > 0) & (sizes * voxel_mm3 >= smallest_mm3 * (1 - 1e-6)))
    counted = counted[np.argsort(-sizes[counted], kind="stable")]
    number_of = np.zeros(len(sizes), dtype=np.int32)
    number_of[counted] = np.arange(1, len(counted) + 1)
    labels[box] = number_of[components]
    owners = labels[places]
    centres = np.array([np.bincount(owners, weights=axis, minlength=len(counted) + 1)[1:] for axis in places])
    centres = mask.affine[:3, :3] @ (centres / sizes[counted]) + mask.affine[:3, 3:]
    lesions = tuple(
        Lesion(number, int(voxels), float(voxels * voxel_mm3), (float(x), float(y), float(z)))
        for number, (voxels, (x, y, z)) in enumerate(zip(sizes[counted], centres.T, strict=True), start=1)
    )
    return Lesions(lesions, labels)


def neighbour_steps(shape: tuple[int, ...]) -> np.ndarray:
    """Offsets from a voxel to its 26 neighbours in a flattened array of this shape."""
    _, size_y, size_z = shape
    around = (-1, 0, 1)
    steps = np.array([(x * size_y + y) * size_z + z for x in around for y in around for z in around])
    return steps[steps != 0]
