"""Confounds regressed out of the features: covariates of the manifest and whole-brain components."""

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
"""Features on which the brain components are learnt."""
_INDEX, _COMPONENTS = "confounds.json", "components.safetensors"


class _Index(Content):
    brain_components: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, eq=False)
class Confounds:
    """Confounds, learnt on the training controls.

    Attributes
    ----------
    covariates : Covariates
    brain_components : BrainComponents or None
    """

    covariates: Covariates = field(default_factory=Covariates)
    brain_components: BrainComponents | None = None

    @property
    def size(self) -> int:
        """Number of confounds (k)."""
        return self.covariates.size + (self.brain_components.size if self.brain_components else 0)

    def values(self, channels: np.ndarray, inside: np.ndarray, participant: SubjectRecord | None = None) -> np.ndarray:
        """Compute the confounds of one subject, (k,) float64; 0 is the controls' mean.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        participant : SubjectRecord, optional
            Source of the covariates; without it, the controls' mean is assumed.
        """
        covariates = np.zeros(self.covariates.size) if participant is None else self.covariates.values(participant)
        if self.brain_components is None:
            return covariates
        brain = sampled(self.brain_components.features.compute(channels), inside)
        return np.concatenate([covariates, self.brain_components.weights(brain)])

    def save(self, folder: Path) -> None:
        """Write the number of components, and one file for the covariates and one for the components, if any."""
        self.covariates.save(folder)
        if self.brain_components:
            self.brain_components.save(folder / _COMPONENTS)
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(
                json.dumps({"brain_components": self.brain_components.size if self.brain_components else 0})
            )

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, source: FeatureSource, settings: EnsembleSettings) -> "Confounds":
        """Load the saved confounds of a model with these settings.

        Raises
        ------
        UserError
            A part is missing or damaged.
        """
        # May be smaller than in the settings, since few controls allow few components.
        size = read_json(
            folder / _INDEX, _Index, "the number of brain components", "Run the stage fit again."
        ).brain_components
        covariates = Covariates.load(folder, settings.covariates)
        return cls(
            covariates, BrainComponents.load(folder / _COMPONENTS, source.features(WHOLE_BRAIN, mask)) if size else None
        )
