"""Lesions: the connected components of the truth."""

from dataclasses import dataclass

import numpy as np

from ...data_manifests.images.volume import Volume
from . import kernels


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
    # A component of exactly the smallest volume counts, whatever the affine's rounding.
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
    """Steps from a voxel to its 26 neighbours in a flat array of this shape: by face, edge or corner they are one."""
    _, size_y, size_z = shape
    around = (-1, 0, 1)
    steps = np.array([(x * size_y + y) * size_z + z for x in around for y in around for z in around])
    return steps[steps != 0]
