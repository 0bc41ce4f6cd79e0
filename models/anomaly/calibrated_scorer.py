"""The ways to read a brain: what is looked at, and how its likeness to the controls is judged.

A reader is features, a scorer that was fitted on the controls' features, and a calibration that brings its scores onto
the scale that all readers share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ...data_manifests.errors import UserError, private
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.intensity.derived_maps import DERIVED_MAPS, Direction
from ...preprocessing.patches.voxel_mask import PatchGrid
from ..confounds.regression import Adjustment
from ..encoder.checkpoint import Checkpoint
from ..features.extractors import REACH_OF_PATCHES_VOX, CodeFeatures, Features, PatchFeatures, VoxelFeatures
from ..settings import ModelSettings, ReaderName
from .calibration import Calibration
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing

_CALIBRATION, _SMOOTHED, _COMPONENTS = "calibration.safetensors", "smoothed.safetensors", "components.safetensors"
_ADJUSTMENT = "nuisances.safetensors"


@dataclass(frozen=True)
class Plan:
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
    def looks_at(self) -> str:
        """Readers that look at the same features share this name."""
        return numbered("codes", self.member) if self.features == "codes" else f"{self.features}_{self.channels}"


def numbered(name: str, member: int | None) -> str:
    """The first member goes by the plain name."""
    return f"{name}_{member + 1}" if member else name


PLANS: Mapping[ReaderName, Plan] = {
    "ocsvm": Plan("codes", "ocsvm"),
    "mahalanobis": Plan("codes"),
    "intensity": Plan("voxels"),
    "patches": Plan("patches"),
    "hand_made": Plan("voxels", channels="all"),
}
"""Readers by name. `ocsvm` is the method's own; `intensity` is the z-score with pooled variance."""


@dataclass(frozen=True, eq=False)
class Sight:
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

    def plans(self, names: Sequence[ReaderName]) -> dict[str, Plan]:
        """Plans by the reader's own name; codes have one reader an encoder, a derived map one a modality.

        Raises
        ------
        UserError
            A reader of a derived map that the cohort does not have.
        """
        found = {}
        for name in names:
            if name in PLANS and PLANS[name].features == "codes":
                if not self.checkpoints:
                    raise ValueError(f"{name} is a reader of codes, and there is no encoder")
                for member in range(len(self.checkpoints)):
                    found[numbered(name, member)] = replace(PLANS[name], member=member)
                continue
            if name in PLANS:
                # Without derived maps, all channels are the modalities: one reader, not two that agree.
                if self.channels.derived or name != "hand_made" or "intensity" not in names:
                    found[name] = PLANS[name]
                continue
            if name not in self.channels.derived:
                raise UserError(
                    f"models.fusion.readers names {name}, and the derived maps are "
                    f"{', '.join(self.channels.derived) or 'none'}. Add {name} to preprocessing.derived_maps, or leave "
                    "the reader out."
                )
            for modality in self.channels.modalities:
                channel = f"{modality}_{name}"
                found[channel] = Plan("voxels", channels=channel, direction=DERIVED_MAPS[name].suspicious)
        return found

    def rows(self, plan: Plan) -> tuple[int, ...]:
        """Which channels a reader looks at."""
        known = {"modalities": self.channels.modalities, "all": self.channels.names}
        names = known.get(plan.channels, (plan.channels,))
        if plan.member is not None:
            names = self.checkpoints[plan.member].origin.channels
        return tuple(self.channels.index(names))

    def reach_vox(self, plan: Plan, grid: PatchGrid) -> int:
        """How far off a location a reader looks."""
        return REACH_OF_PATCHES_VOX if plan.features == "patches" else self.features(plan, grid).reach_vox

    def features(self, plan: Plan, grid: PatchGrid) -> Features:
        """Features that need nothing learnt but the encoder."""
        if plan.member is not None:
            return CodeFeatures(grid, self.rows(plan), self.checkpoints[plan.member].encoder, self.device)
        return VoxelFeatures(grid, self.rows(plan))


@dataclass(frozen=True, eq=False)
class Reader:
    """One way to read a brain, fitted and calibrated.

    Attributes
    ----------
    name : str
    features : Features
    scorer : Scorer
    calibration : Calibration
        Of single voxels.
    smoothing : Smoothing or None
        None: a voxel stands for itself.
    member : int or None
        Whose codes it reads; None: none's.
    adjustment : Adjustment or None
        What is taken off the features for the person's nuisances.
    """

    name: str
    features: Features
    scorer: Scorer
    calibration: Calibration
    smoothing: Smoothing | None
    member: int | None = None
    adjustment: Adjustment | None = None

    def surprise(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        nuisances: np.ndarray | None = None,
        *,
        jobs: int | None = None,
    ) -> np.ndarray:
        """-log10 p of one subject, (P,) float32, higher = more anomalous.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        nuisances : ndarray, (k,), optional
            As `Nuisances.of` gives them; without them, the subject is read at the controls' mean.
        jobs : int, optional
            Threads; one a core by default.
        """
        features = self.features.of(channels)
        if self.adjustment is not None and nuisances is not None:
            features = self.adjustment.apply(features, nuisances)
        surprise = self.calibration.surprise(self.scorer.score(features, jobs=jobs))
        return surprise if self.smoothing is None else self.smoothing.surprise(surprise, inside)

    def save(self, folder: Path) -> None:
        """Write all but the encoder, which has a place of its own."""
        if isinstance(self.features, PatchFeatures):
            self.features.save(folder / _COMPONENTS)
        if self.adjustment is not None:
            self.adjustment.save(folder / _ADJUSTMENT)
        self.scorer.save(folder)
        self.calibration.save(folder / _CALIBRATION)
        if self.smoothing is not None:
            self.smoothing.calibration.save(folder / _SMOOTHED)

    @classmethod
    def load(
        cls, name: str, plan: Plan, folder: Path, grid: PatchGrid, sight: Sight, settings: ModelSettings, adjusted: bool
    ) -> "Reader":
        """Read what `save` wrote; `adjusted`: whether there are nuisances to take off.

        Raises
        ------
        UserError
            A part is missing, damaged, or of other locations.
        """
        if plan.features == "patches":
            features: Features = PatchFeatures.load(folder / _COMPONENTS, grid)
        else:
            features = sight.features(plan, grid)
        if plan.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.load(folder, grid, settings.detector)
        else:
            scorer = Mahalanobis.load(folder, grid, plan.direction)
        calibration, sigma_mm, smoothing = Calibration.load(folder / _CALIBRATION), settings.fusion.smoothing_mm, None
        parts = [calibration]
        if sigma_mm > 0:
            smoothing = Smoothing(grid, sigma_mm, Calibration.load(folder / _SMOOTHED))
            parts.append(smoothing.calibration)
        adjustment = Adjustment.load(folder / _ADJUSTMENT) if adjusted else None
        sizes = {len(part.spread) for part in parts} | ({adjustment.slopes.shape[1]} if adjustment else set())
        if sizes != {grid.size} or {part.mask_hash for part in parts} != {grid.mask_hash}:
            raise UserError(
                f"{private(folder, 'its folder')}: its calibration is of other locations than the brain mask. Fit the "
                "model again."
            )
        return cls(name, features, scorer, calibration, smoothing, plan.member, adjustment)
