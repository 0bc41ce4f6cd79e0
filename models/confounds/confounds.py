"""What of a person is taken off every feature: what the manifest tells, and what the whole brain shows."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import written_whole
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.typed_json import Content, read_json
from ...preprocessing.patches.voxel_mask import PatchGrid
from ..features.source import Plan, Sight
from ..settings import FusionSettings
from .brain_components import Patterns, sampled
from .covariates import Covariates

WHOLE_BRAIN = Plan("voxels", channels="all")
"""What patterns are seen in."""
_INDEX, _PATTERNS = "nuisances.json", "patterns.safetensors"


class _Index(Content):
    patterns: Annotated[int, Field(ge=0)]


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
        """Write how many patterns there are, and a file for each part that there is."""
        self.covariates.save(folder)
        if self.patterns:
            self.patterns.save(folder / _PATTERNS)
        with written_whole(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps({"patterns": self.patterns.size if self.patterns else 0}))

    @classmethod
    def load(cls, folder: Path, grid: PatchGrid, sight: Sight, settings: FusionSettings) -> "Nuisances":
        """Read what `save` wrote for a model with these settings.

        Raises
        ------
        UserError
            A part is missing or damaged.
        """
        # Not to be had from the settings: of few controls there are fewer.
        size = read_json(folder / _INDEX, _Index, "the number of patterns", "Run the stage fit again.").patterns
        covariates = Covariates.load(folder, settings.covariates)
        return cls(covariates, Patterns.load(folder / _PATTERNS, sight.features(WHOLE_BRAIN, grid)) if size else None)
