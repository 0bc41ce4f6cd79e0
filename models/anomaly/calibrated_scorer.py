"""The ways to read a brain: what is looked at, and how its likeness to the controls is judged.

A reader is features, a scorer that was fitted on the controls' features, and a calibration that brings its scores onto
the scale that all readers share.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.regression import ConfoundRegression
from ..features.extractors import Features, PatchFeatures
from ..features.source import FeatureSource, ScorerSpec
from ..settings import ModelSettings
from .calibration import Calibration
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing

_CALIBRATION, _SMOOTHED, _COMPONENTS = "calibration.safetensors", "smoothed.safetensors", "components.safetensors"
_REGRESSION = "confounds.safetensors"


@dataclass(frozen=True, eq=False)
class CalibratedScorer:
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
    regression : ConfoundRegression or None
        What is taken off the features for the person's nuisances.
    """

    name: str
    features: Features
    scorer: Scorer
    calibration: Calibration
    smoothing: Smoothing | None
    member: int | None = None
    regression: ConfoundRegression | None = None

    def neg_log10_p(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        confounds: np.ndarray | None = None,
        *,
        jobs: int | None = None,
    ) -> np.ndarray:
        """-log10 p of one subject, (P,) float32, higher = more anomalous.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        confounds : ndarray, (k,), optional
            As `Confounds.of` gives them; without them, the subject is read at the controls' mean.
        jobs : int, optional
            Threads; one a core by default.
        """
        features = self.features.compute(channels)
        if self.regression is not None and confounds is not None:
            features = self.regression.residualise(features, confounds)
        neg_log10_p = self.calibration.neg_log10_p(self.scorer.score(features, jobs=jobs))
        return neg_log10_p if self.smoothing is None else self.smoothing.neg_log10_p(neg_log10_p, inside)

    def save(self, folder: Path) -> None:
        """Write all but the encoder, which has a place of its own."""
        if isinstance(self.features, PatchFeatures):
            self.features.save(folder / _COMPONENTS)
        if self.regression is not None:
            self.regression.save(folder / _REGRESSION)
        self.scorer.save(folder)
        self.calibration.save(folder / _CALIBRATION)
        if self.smoothing is not None:
            self.smoothing.calibration.save(folder / _SMOOTHED)

    @classmethod
    def load(
        cls,
        name: str,
        spec: ScorerSpec,
        folder: Path,
        grid: VoxelMask,
        source: FeatureSource,
        settings: ModelSettings,
        residualised: bool,
    ) -> "CalibratedScorer":
        """Read what `save` wrote; `residualised`: whether there are nuisances to take off.

        Raises
        ------
        UserError
            A part is missing, damaged, or of other locations.
        """
        if spec.features == "patches":
            features: Features = PatchFeatures.load(folder / _COMPONENTS, grid)
        else:
            features = source.features(spec, grid)
        if spec.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.load(folder, grid, settings.detector)
        else:
            scorer = Mahalanobis.load(folder, grid, spec.direction)
        calibration, sigma_mm, smoothing = Calibration.load(folder / _CALIBRATION), settings.ensemble.smoothing_mm, None
        parts = [calibration]
        if sigma_mm > 0:
            smoothing = Smoothing(grid, sigma_mm, Calibration.load(folder / _SMOOTHED))
            parts.append(smoothing.calibration)
        regression = ConfoundRegression.load(folder / _REGRESSION) if residualised else None
        sizes = {len(part.spread) for part in parts} | ({regression.slopes.shape[1]} if regression else set())
        if sizes != {grid.size} or {part.mask_hash for part in parts} != {grid.mask_hash}:
            raise UserError(
                f"{private(folder, 'its folder')}: its calibration is of other locations than the brain mask. Fit the "
                "model again."
            )
        return cls(name, features, scorer, calibration, smoothing, spec.member, regression)
