"""Specification of scorers, and construction of their features from channels and encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...data_manifests.errors import UserError
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.intensity.derived_maps import DERIVED_MAPS, Direction
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..encoder.checkpoint import Checkpoint
from ..settings import ScorerName
from .extractors import REACH_OF_PATCHES_VOX, Features, LatentFeatures, VoxelFeatures


@dataclass(frozen=True)
class ScorerSpec:
    """Specification of a scorer.

    Attributes
    ----------
    features : {"codes", "voxels", "patches"}
        Latents of the encoder, channel values or patch components; see `extractors`.
    scorer : {"ocsvm", "mahalanobis", "prototypes", "learned"}
        See `scorers`, `Prototypes` and `LearnedScorer`.
    channels : {"modalities", "all"} or str
        Channels of the features, or the name of a single channel. Latents use the channels of the encoder.
    direction : {"both", "higher", "lower"}
        Side of the score that is anomalous.
    member : int or None
        Index of the encoder in the ensemble; None: no encoder.
    """

    features: Literal["codes", "voxels", "patches"]
    scorer: Literal["ocsvm", "mahalanobis", "prototypes", "learned"] = "mahalanobis"
    channels: str = "modalities"
    direction: Direction = "both"
    member: int | None = None

    @property
    def is_smoothed(self) -> bool:
        """Whether -log10 p is smoothed. The inputs of the learned scorer already hold smoothed values."""
        return self.scorer != "learned"

    @property
    def is_residualised(self) -> bool:
        """Whether confounds are regressed out of the features. Prototypes allow for what moves in another way."""
        return self.scorer != "prototypes"

    @property
    def feature_key(self) -> str:
        """Name of the features; equal for scorers that share features."""
        return numbered("codes", self.member) if self.features == "codes" else f"{self.features}_{self.channels}"


def numbered(name: str, member: int | None) -> str:
    """Append the number of a member to a name; the first member has no number."""
    return f"{name}_{member + 1}" if member else name


SCORER_SPECS: Mapping[ScorerName, ScorerSpec] = {
    "ocsvm": ScorerSpec("codes", "ocsvm"),
    "mahalanobis": ScorerSpec("codes"),
    "intensity": ScorerSpec("voxels"),
    "patches": ScorerSpec("patches"),
    "prototypes": ScorerSpec("patches", "prototypes"),
    "derived_features": ScorerSpec("voxels", channels="all"),
    "learned": ScorerSpec("voxels", "learned", channels="all"),
}
"""Scorers by name. `ocsvm` is the published method; `intensity` is the z-score with pooled variance."""


def is_of_latents(name: str) -> bool:
    """Whether a scorer of this name scores the latents of an encoder."""
    return any(name == each and spec.features == "codes" for each, spec in SCORER_SPECS.items())


@dataclass(frozen=True, eq=False)
class FeatureSource:
    """Channels of the cohort and trained encoders, from which features are computed.

    Attributes
    ----------
    channels : Channels
    checkpoints : tuple of Checkpoint
        Encoders of the ensemble; empty if no scorer uses latents.
    device : str or torch.device
        Device of the encoders.
    """

    channels: Channels
    checkpoints: tuple[Checkpoint, ...] = ()
    device: torch.device | str = "cpu"

    def specs(self, names: Sequence[ScorerName]) -> dict[str, ScorerSpec]:
        """Specifications of the scorers, by name.

        Scorers of latents have one specification per encoder, scorers of a derived map one per modality.

        Raises
        ------
        UserError
            A scorer of a derived map that the cohort does not have.
        """
        specs = {}
        for name in names:
            if name in SCORER_SPECS:
                spec = SCORER_SPECS[name]
                if is_of_latents(name):
                    if not self.checkpoints:
                        raise ValueError(f"scorer {name} needs an encoder, but there is none")
                    for member in range(len(self.checkpoints)):
                        specs[numbered(name, member)] = replace(spec, member=member)
                # Without derived maps, "derived_features" and "intensity" are the same: keep one.
                elif self.channels.derived or name != "derived_features" or "intensity" not in names:
                    specs[name] = spec
                continue
            if name not in self.channels.derived:
                raise UserError(
                    f"models.ensemble.scorers names {name}, but the derived maps are "
                    f"{', '.join(self.channels.derived) or 'none'}. Add {name} to preprocessing.derived_maps, or "
                    "remove the scorer."
                )
            for modality in self.channels.modalities:
                channel = f"{modality}_{name}"
                specs[channel] = ScorerSpec("voxels", channels=channel, direction=DERIVED_MAPS[name].suspicious)
        return specs

    def rows(self, spec: ScorerSpec) -> tuple[int, ...]:
        """Return the indices of the channels of a scorer."""
        groups = {"modalities": self.channels.modalities, "all": self.channels.names}
        names = groups.get(spec.channels, (spec.channels,))
        if spec.member is not None:
            names = self.checkpoints[spec.member].origin.channels
        return tuple(self.channels.index(names))

    def reach_vox(self, spec: ScorerSpec, mask: VoxelMask) -> int:
        """Reach of the features of a scorer, see `Features.reach_vox`."""
        return REACH_OF_PATCHES_VOX if spec.features == "patches" else self.features(spec, mask).reach_vox

    def features(self, spec: ScorerSpec, mask: VoxelMask) -> Features:
        """Feature extractor of a scorer; for all features but "patches", which are learnt on the controls."""
        if spec.member is not None:
            return LatentFeatures(mask, self.rows(spec), self.checkpoints[spec.member].encoder, self.device)
        return VoxelFeatures(mask, self.rows(spec))
