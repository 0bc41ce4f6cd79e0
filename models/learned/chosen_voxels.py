"""Choice of the voxels of an edited control that the network learns from."""

import numpy as np

from ..edits.edited_images import Edited
from ..edits.families import FAMILIES, SHAM

_VOXELS_OF_EDIT = 80
_UNEDITED_VOXELS = 4000
_LARGEST = 8.0


def chosen_voxels(
    drawn: Edited, numbers: np.ndarray, inside: np.ndarray, deviations: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose voxels of an edited control to learn from.

    Each edit and each sham contributes the same number of voxels. Half of the other voxels are drawn in proportion to
    the squared length of their deviations: unedited tissue that looks unusual is the hardest to tell from edits.

    Parameters
    ----------
    drawn : Edited
    numbers : ndarray of int, (P,)
        Number of the edit of each voxel, see `Edited`.
    inside : ndarray of bool, (P,)
    deviations : ndarray, (P, C + 1)
        See `Norm.deviations`.
    random : Generator

    Returns
    -------
    ndarray of int, (n,)
        Indices of the voxels.
    ndarray of int8, (n,)
        Families, see `Samples`.
    """
    index, labels = [], []
    names: list[str] = list(FAMILIES)
    for number, family in enumerate(drawn.families, 1):
        voxels = np.flatnonzero((numbers == number) & inside)
        voxels = random.choice(voxels, min(_VOXELS_OF_EDIT, len(voxels)), replace=False)
        index.append(voxels)
        labels.append(np.full(len(voxels), -1 if family == SHAM else names.index(family), np.int8))
    unedited = np.flatnonzero((numbers == 0) & inside)
    share = (np.clip(deviations[unedited], -_LARGEST, _LARGEST) ** 2).sum(axis=1, dtype=np.float64) + 1e-6
    for weights in (None, share / share.sum()):
        index.append(random.choice(unedited, min(_UNEDITED_VOXELS // 2, len(unedited)), replace=False, p=weights))
        labels.append(np.full(len(index[-1]), -1, np.int8))
    return np.concatenate(index), np.concatenate(labels)
