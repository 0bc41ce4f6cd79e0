"""Edited copies of the training controls, to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_manifests.images.volume import Volume
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.intensity.derived_maps import tissue_levels
from ...preprocessing.patches.volume_store import VolumeStore
from ..settings import FamilyName
from .edited_images import Edited, edited
from .families import Tissue

EDITS = 8
"""Edits of a copy: more would leave little unedited tissue between them."""
_FLUID_PERCENTILE = 3.0


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
        Families of edits, see `families`.
    seed : int
    """

    store: VolumeStore
    keys: tuple[str, ...]
    channels: Channels
    families: Sequence[FamilyName]
    seed: int

    def unedited(self, index: int) -> "Unedited":
        """Read a control."""
        images = self._images(index)
        brain_mask = Volume(np.array(self.store.inside_of(self.keys[index])), self.store.grid.grid)
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
            number=EDITS,
            families=self.families,
        )
        return self.channels.with_derived(drawn.images, control.brain_mask), drawn

    def _images(self, index: int) -> np.ndarray:
        return self.store.volumes_of(self.keys[index])[: len(self.channels.modalities)].astype(np.float32)


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
