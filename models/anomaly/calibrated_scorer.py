"""The ways to read a brain: what is looked at, and how its likeness to the controls is judged.

A reader is features, a scorer that was fitted on the controls' features, and a calibration that brings its scores onto
the scale that all readers share.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import PatchGrid
from ..confounds.regression import Adjustment
from ..features.extractors import Features, PatchFeatures
from ..features.source import Plan, Sight
from ..settings import ModelSettings
from .calibration import Calibration
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing

_CALIBRATION, _SMOOTHED, _COMPONENTS = "calibration.safetensors", "smoothed.safetensors", "components.safetensors"
_ADJUSTMENT = "nuisances.safetensors"


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
