"""Where the features of a reader come from: which channels or codes it looks at, and with what."""

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
    """What makes a reader.

    Attributes
    ----------
    features : {"codes", "voxels", "patches"}
        See `features`.
    scorer : {"ocsvm", "mahalanobis"}
        See `scorers`.
    channels : {"modalities", "all"} or str
        Which channels are looked at, or the name of one of them. Codes are of those that the encoder was trained on.
    direction : {"both", "higher", "lower"}
    member : int or None
        Which encoder of the ensemble makes the codes.
    """

    features: Literal["codes", "voxels", "patches"]
    scorer: Literal["ocsvm", "mahalanobis"] = "mahalanobis"
    channels: str = "modalities"
    direction: Direction = "both"
    member: int | None = None

    @property
    def feature_key(self) -> str:
        """Readers that look at the same features share this name."""
        return numbered("codes", self.member) if self.features == "codes" else f"{self.features}_{self.channels}"


def numbered(name: str, member: int | None) -> str:
    """The first member goes by the plain name."""
    return f"{name}_{member + 1}" if member else name


SCORER_SPECS: Mapping[ScorerName, ScorerSpec] = {
    "ocsvm": ScorerSpec("codes", "ocsvm"),
    "mahalanobis": ScorerSpec("codes"),
    "intensity": ScorerSpec("voxels"),
    "patches": ScorerSpec("patches"),
    "derived_features": ScorerSpec("voxels", channels="all"),
}
"""Readers by name. `ocsvm` is the method's own; `intensity` is the z-score with pooled variance."""


@dataclass(frozen=True, eq=False)
class FeatureSource:
    """What there is to look at: the channels of the cohort, and the trained encoders.

    Attributes
    ----------
    channels : Channels
    checkpoints : tuple of Checkpoint
        An ensemble; empty where no reader looks at codes.
    device : str or torch.device
        Where the encoders run.
    """

    channels: Channels
    checkpoints: tuple[Checkpoint, ...] = ()
    device: torch.device | str = "cpu"

    def specs(self, names: Sequence[ScorerName]) -> dict[str, ScorerSpec]:
        """Plans by the reader's own name; codes have one reader an encoder, a derived map one a modality.

        Raises
        ------
        UserError
            A reader of a derived map that the cohort does not have.
        """
        found = {}
        for name in names:
            if name in SCORER_SPECS and SCORER_SPECS[name].features == "codes":
                if not self.checkpoints:
                    raise ValueError(f"{name} is a reader of codes, and there is no encoder")
                for member in range(len(self.checkpoints)):
                    found[numbered(name, member)] = replace(SCORER_SPECS[name], member=member)
                continue
            if name in SCORER_SPECS:
                # Without derived maps, all channels are the modalities: one reader, not two that agree.
                if self.channels.derived or name != "derived_features" or "intensity" not in names:
                    found[name] = SCORER_SPECS[name]
                continue
            if name not in self.channels.derived:
                raise UserError(
                    f"models.ensemble.scorers names {name}, and the derived maps are "
                    f"{', '.join(self.channels.derived) or 'none'}. Add {name} to preprocessing.derived_maps, or leave "
                    "the reader out."
                )
            for modality in self.channels.modalities:
                channel = f"{modality}_{name}"
                found[channel] = ScorerSpec("voxels", channels=channel, direction=DERIVED_MAPS[name].suspicious)
        return found

    def rows(self, spec: ScorerSpec) -> tuple[int, ...]:
        """Which channels a reader looks at."""
        known = {"modalities": self.channels.modalities, "all": self.channels.names}
        names = known.get(spec.channels, (spec.channels,))
        if spec.member is not None:
            names = self.checkpoints[spec.member].origin.channels
        return tuple(self.channels.index(names))

    def reach_vox(self, spec: ScorerSpec, grid: VoxelMask) -> int:
        """How far off a location a reader looks."""
        return REACH_OF_PATCHES_VOX if spec.features == "patches" else self.features(spec, grid).reach_vox

    def features(self, spec: ScorerSpec, grid: VoxelMask) -> Features:
        """Features that need nothing learnt but the encoder."""
        if spec.member is not None:
            return LatentFeatures(grid, self.rows(spec), self.checkpoints[spec.member].encoder, self.device)
        return VoxelFeatures(grid, self.rows(spec))
