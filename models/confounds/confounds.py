"""What of a person is taken off every feature: what the manifest tells, and what the whole brain shows."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.typed_json import Content, read_json
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.source import FeatureSource, ScorerSpec
from ..settings import EnsembleSettings
from .brain_components import BrainComponents, sampled
from .covariates import Covariates

WHOLE_BRAIN = ScorerSpec("voxels", channels="all")
"""What patterns are seen in."""
_INDEX, _COMPONENTS = "confounds.json", "components.safetensors"


class _Index(Content):
    brain_components: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, eq=False)
class Confounds:
    """Learnt on the training controls.

    Attributes
    ----------
    covariates : Covariates
    brain_components : BrainComponents or None
    """

    covariates: Covariates = field(default_factory=Covariates)
    brain_components: BrainComponents | None = None

    @property
    def size(self) -> int:
        """How many numbers stand for a person (k)."""
        return self.covariates.size + (self.brain_components.size if self.brain_components else 0)

    def values(self, channels: np.ndarray, inside: np.ndarray, participant: SubjectRecord | None = None) -> np.ndarray:
        """Numbers of one subject, (k,) float64; 0 is the controls' mean.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        participant : SubjectRecord, optional
            Whose covariates they are; without it, they are read at the controls' mean.
        """
        known = np.zeros(self.covariates.size) if participant is None else self.covariates.values(participant)
        if self.brain_components is None:
            return known
        brain = sampled(self.brain_components.features.compute(channels), inside)
        return np.concatenate([known, self.brain_components.weights(brain)])

    def save(self, folder: Path) -> None:
        """Write how many patterns there are, and a file for each part that there is."""
        self.covariates.save(folder)
        if self.brain_components:
            self.brain_components.save(folder / _COMPONENTS)
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(
                json.dumps({"brain_components": self.brain_components.size if self.brain_components else 0})
            )

    @classmethod
    def load(cls, folder: Path, grid: VoxelMask, source: FeatureSource, settings: EnsembleSettings) -> "Confounds":
        """Read what `save` wrote for a model with these settings.

        Raises
        ------
        UserError
            A part is missing or damaged.
        """
        # Not to be had from the settings: of few controls there are fewer.
        size = read_json(
            folder / _INDEX, _Index, "the number of brain components", "Run the stage fit again."
        ).brain_components
        covariates = Covariates.load(folder, settings.covariates)
        return cls(
            covariates, BrainComponents.load(folder / _COMPONENTS, source.features(WHOLE_BRAIN, grid)) if size else None
        )
