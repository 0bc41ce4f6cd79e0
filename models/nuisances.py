"""What of a person is taken off every feature: what the manifest tells, and what the whole brain shows."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data_manifests.subject import SubjectRecord
from ..preprocessing.patch_grid import PatchGrid
from .covariates import Covariates
from .patterns import Patterns, sampled
from .readers import Sight
from .settings import FusionSettings

_PATTERNS = "patterns.safetensors"


@dataclass(frozen=True, eq=False)
class Nuisances:
    """Learnt on the training controls.

    Attributes
    ----------
    covariates : Covariates
    patterns : Patterns or None
    """

    covariates: Covariates = field(default_factory=Covariates)
    patterns: Patterns | None = None

    @property
    def size(self) -> int:
        """How many numbers stand for a person (k)."""
        return self.covariates.size + (self.patterns.size if self.patterns else 0)

    def of(self, channels: np.ndarray, inside: np.ndarray, person: SubjectRecord | None = None) -> np.ndarray:
        """Numbers of one subject, (k,) float64; 0 is the controls' mean.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        person : SubjectRecord, optional
            Whose covariates they are; without it, they are read at the controls' mean.
        """
        told = np.zeros(self.covariates.size) if person is None else self.covariates.of(person)
        if self.patterns is None:
            return told
        brain = sampled(self.patterns.features.of(channels), inside)
        return np.concatenate([told, self.patterns.weights(brain)])

    def save(self, folder: Path) -> None:
        """Write a file for each that there is."""
        self.covariates.save(folder)
        if self.patterns:
            self.patterns.save(folder / _PATTERNS)

    @classmethod
    def load(cls, folder: Path, grid: PatchGrid, sight: Sight, settings: FusionSettings) -> "Nuisances":
        """Read what `save` wrote for a model with these settings.

        Raises
        ------
        UserError
            A part is missing or damaged.
        """
        covariates, path = Covariates.load(folder, settings.covariates), folder / _PATTERNS
        # With few controls there are none, whatever the settings say.
        patterns = Patterns.load(path, sight.voxels(grid)) if path.exists() else None
        return cls(covariates, patterns)
