"""Left-right mirrored copies of the controls.

The template is symmetric, so a mirrored brain is a second example of a healthy one at each of its voxels. What is
estimated there has twice as many samples, though it cannot tell the left from the right any more. A copy has the key of
its control with `MIRRORED` at the end, and is made where it is read (`VolumeStore.volumes_of`).
"""

from collections.abc import Sequence

import numpy as np

from ...data_manifests.cohort.subject import MIRRORED
from ...data_manifests.images.grid import Grid

_SAME_MM = 1e-3


def is_symmetric(grid: Grid) -> bool:
    """Whether a reversed first axis is a reflection of the grid at the plane x = 0."""
    first, last = (grid.affine @ [index, 0, 0, 1] for index in (0, grid.size_vox[0] - 1))
    oblique = np.abs([*grid.affine[0, 1:3], *grid.affine[1:3, 0]])
    return bool(abs(first[0] + last[0]) < _SAME_MM and oblique.max() < _SAME_MM)


def with_copies(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of controls, each followed by that of its mirrored copy."""
    return tuple(name for key in keys for name in (key, key + MIRRORED))


def are_copies(keys: Sequence[str]) -> np.ndarray:
    """Which keys are those of mirrored copies, (S,) bool."""
    return np.array([key.endswith(MIRRORED) for key in keys], bool)
