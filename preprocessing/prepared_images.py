"""Prepared images of one subject, and the voxels that the training controls cover."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import SubjectRecord
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.images.grid import Grid
from ..data_manifests.images.volume import Volume, read_mask, read_volume
from ..data_manifests.terms import Modality

FORMAT = 2
"""Increased whenever the same scan and settings give other prepared images, which repeats the preparation."""
_FEWEST = 4


@dataclass(frozen=True)
class PreparedImages:
    """Paths of the prepared images of one subject.

    Attributes
    ----------
    key : str
    images : mapping from modality to path
        On the template grid, in [0, 1] inside the brain, 0 outside.
    brain_mask : Path
        The subject's brain on the template grid.
    """

    key: str
    images: Mapping[Modality, Path]
    brain_mask: Path

    @classmethod
    def from_record(cls, subject: SubjectRecord, out: OutputFolder, modalities: Sequence[Modality]) -> "PreparedImages":
        """Return the paths that `prepare_subject` writes."""
        images: dict[Modality, Path] = {modality: out.prepared_image(subject, modality) for modality in modalities}
        return cls(subject.key, images, out.prepared_brain_mask(subject))

    def read(self, modality: Modality, grid: Grid) -> Volume:
        """Read one image.

        Raises
        ------
        SubjectError
            The image is missing, unreadable, on another grid, or has intensities outside [0, 1].
        """
        if modality not in self.images:
            raise SubjectError(f"{self.key}: has no prepared {modality}, expected one. Prepare the subject again.")
        image = self._read(read_volume, self.images[modality], modality, grid)
        low, high = float(image.voxels.min()), float(image.voxels.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise SubjectError(
                f"{self.key}: its prepared {modality} has intensities from {low:.3g} to {high:.3g}, expected 0 to 1. "
                "Prepare the subject again."
            )
        return image

    def read_brain_mask(self, grid: Grid) -> Volume:
        """Read the brain mask.

        Raises
        ------
        SubjectError
            The mask is missing, unreadable, or on another grid.
        """
        return self._read(read_mask, self.brain_mask, "brain mask", grid)

    def _read(self, load, path: Path, name: str, grid: Grid) -> Volume:
        try:
            volume = load(path)
        except UserError as error:
            raise SubjectError(f"{self.key}: {error} Prepare the subject again.") from error
        if not volume.grid.same_as(grid):
            raise SubjectError(
                f"{self.key}: its prepared {name} lies on {volume.grid}, expected the template grid {grid}. "
                "Prepare the subject again."
            )
        return volume


def covered(subjects: Sequence[PreparedImages], template_brain: Volume) -> np.ndarray:
    """Voxels of the template's brain that enough subjects cover: at least half, and at least four.

    With fewer than four subjects, all of them must cover a voxel. Otherwise too few controls would remain to score one
    of them against the others.

    Parameters
    ----------
    subjects : sequence of PreparedImages
        The training controls.
    template_brain : Volume, bool

    Returns
    -------
    ndarray of bool, (X, Y, Z)
        Subset of the template's brain.
    """
    brains = np.zeros(template_brain.grid.size_vox, np.uint16)
    for subject in subjects:
        brains += subject.read_brain_mask(template_brain.grid).voxels
    return template_brain.voxels & (2 * brains >= len(subjects)) & (brains >= min(len(subjects), _FEWEST))
