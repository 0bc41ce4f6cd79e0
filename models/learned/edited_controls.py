"""Edited copies of the training controls, to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_manifests.images.volume import Volume
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.intensity.derived_maps import tissue_levels
from ...preprocessing.patches.volume_store import VolumeStore
from ..settings import FamilyName
from .edits import FAMILIES, SHAM, Edited, Tissue, edited

_EDITS = 8
"""Edits of a copy: more would leave little unedited tissue between them."""
_FLUID_PERCENTILE = 3.0
_VOXELS_OF_EDIT = 80
_UNEDITED_VOXELS = 4000
"""Unedited voxels of a copy, see `chosen_voxels`."""
_LARGEST = 8.0


@dataclass(frozen=True, eq=False)
class EditedControls:
    """Draws random edits of the controls.

    Attributes
    ----------
    store : VolumeStore
    keys : tuple of str
        The training controls.
    channels : Channels
    families : tuple of str
        Families of edits, see `edits`.
    seed : int
    """

    store: VolumeStore
    keys: tuple[str, ...]
    channels: Channels
    families: Sequence[FamilyName]
    seed: int

    def unedited(self, index: int) -> "Unedited":
        """Read a control."""
        (row,) = self.store.index([self.keys[index]])
        images = self._images(index)
        brain_mask = Volume(np.array(self.store.inside[row]), self.store.grid.grid)
        return Unedited(index, images, brain_mask, [tissue_of(image, brain_mask) for image in images])

    def draw(self, control: "Unedited", copy: int) -> tuple[np.ndarray, Edited]:
        """Edit one control and compute its channels again: (C, X, Y, Z) float32, and the edits."""
        random = np.random.default_rng([self.seed, control.index, copy])
        donor = (control.index + int(random.integers(1, len(self.keys)))) % len(self.keys)
        drawn = edited(
            control.images,
            control.brain_mask.voxels,
            self._images(donor),
            control.tissues,
            np.asarray(control.brain_mask.grid.spacing_mm),
            random,
            number=_EDITS,
            families=self.families,
        )
        return self.channels.with_derived(drawn.images, control.brain_mask), drawn

    def _images(self, index: int) -> np.ndarray:
        (row,) = self.store.index([self.keys[index]])
        return self.store.volumes[row, : len(self.channels.modalities)].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Unedited:
    """A control before it is edited.

    Attributes
    ----------
    index : int
        Its place among the training controls.
    images : ndarray, (M, X, Y, Z), float32
    brain_mask : Volume
    tissues : list of Tissue
        One per modality.
    """

    index: int
    images: np.ndarray
    brain_mask: Volume
    tissues: list[Tissue]


def tissue_of(image: np.ndarray, brain_mask: Volume) -> Tissue:
    """Measure the intensities of the tissues in a standardised image."""
    grey, white = tissue_levels(brain_mask.with_voxels(image), brain_mask)
    # Fluid is at the end of the scale where grey matter is: dark in T1w, bright in T2w.
    percentile = _FLUID_PERCENTILE if white > grey else 100 - _FLUID_PERCENTILE
    return Tissue(float(np.percentile(image[brain_mask.voxels], percentile)), grey, white)


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
