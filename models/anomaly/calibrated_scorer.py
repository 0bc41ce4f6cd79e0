"""Calibrated anomaly scorers.

A calibrated scorer consists of voxel-wise features, a scorer fitted on the controls' features, and a calibration that
converts its scores to -log10 p, the common scale of all scorers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.regression import ConfoundRegression
from ..features.extractors import Features, PatchFeatures
from ..features.source import FeatureSource, ScorerSpec
from ..learned.scorer import LearnedScorer
from ..prototypes.scorer import Prototypes
from ..settings import ModelSettings
from ..tensor_file import another_mask_error
from .calibration import Calibration
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing

_CALIBRATION, _SMOOTHED, _COMPONENTS = "calibration.safetensors", "smoothed.safetensors", "components.safetensors"
_REGRESSION = "confounds.safetensors"


@dataclass(frozen=True, eq=False)
class CalibratedScorer:
    """A fitted and calibrated scorer.

    Attributes
    ----------
    name : str
    features : Features
    scorer : Scorer
    calibration : Calibration
        Calibration of the scores of single voxels.
    smoothing : Smoothing or None
        Smoothing of -log10 p within the brain; None: no smoothing.
    member : int or None
        Index of the encoder whose latents are scored; None: the features need no encoder.
    regression : ConfoundRegression or None
        Confound regression applied to the features; None: no confounds.
    weight : float
        Of its -log10 p, where scorers are combined.
    """

    name: str
    features: Features
    scorer: Scorer
    calibration: Calibration
    smoothing: Smoothing | None
    member: int | None = None
    regression: ConfoundRegression | None = None
    weight: float = 1.0

    def neg_log10_p(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        confounds: np.ndarray | None = None,
        *,
        jobs: int | None = None,
    ) -> np.ndarray:
        """Compute -log10 p of one subject, (P,) float32; higher = more anomalous.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        confounds : ndarray, (k,), optional
            Confounds from `Confounds.values`; without them, the controls' mean is assumed.
        jobs : int, optional
            Number of threads; one per core by default.
        """
        return self.neg_log10_p_of(self.features.compute(channels), inside, confounds, jobs=jobs)

    def neg_log10_p_of(
        self, features: np.ndarray, inside: np.ndarray, confounds: np.ndarray | None = None, *, jobs: int | None = None
    ) -> np.ndarray:
        """Compute -log10 p of features (P, d) of one subject; see `neg_log10_p`."""
        if self.regression is not None and confounds is not None:
            features = self.regression.residualise(features, confounds)
        neg_log10_p = self.calibration.neg_log10_p(self.scorer.score(features, inside=inside, jobs=jobs))
        return neg_log10_p if self.smoothing is None else self.smoothing.neg_log10_p(neg_log10_p, inside)

    def save(self, folder: Path) -> None:
        """Write all parts except the encoder, which is saved separately."""
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
        mask: VoxelMask,
        source: FeatureSource,
        settings: ModelSettings,
        residualised: bool,
    ) -> "CalibratedScorer":
        """Load a saved scorer.

        Parameters
        ----------
        name : str
        spec : ScorerSpec
        folder : Path
        mask : VoxelMask
        source : FeatureSource
        settings : ModelSettings
        residualised : bool
            Whether the model has confounds.

        Raises
        ------
        UserError
            A part is missing, damaged, or was fitted on another brain mask.
        """
        if spec.features == "patches":
            features: Features = PatchFeatures.load(folder / _COMPONENTS, mask)
        else:
            features = source.features(spec, mask)
        if spec.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.load(folder, mask, settings.detector)
        elif spec.scorer == "learned":
            scorer = LearnedScorer.load(folder, mask, features.size)
        elif spec.scorer == "prototypes":
            scorer = Prototypes.load(folder, mask, features.size)
        else:
            scorer = Mahalanobis.load(folder, mask, spec.direction)
        calibration, sigma_mm, smoothing = Calibration.load(folder / _CALIBRATION), settings.ensemble.smoothing_mm, None
        parts = [calibration]
        if sigma_mm > 0 and spec.is_smoothed:
            smoothing = Smoothing(mask, sigma_mm, Calibration.load(folder / _SMOOTHED))
            parts.append(smoothing.calibration)
        regression = None
        if residualised and spec.is_residualised:
            regression = ConfoundRegression.load(folder / _REGRESSION)
        sizes = {len(part.scale) for part in parts} | ({regression.slopes.shape[1]} if regression else set())
        if sizes != {mask.size} or {part.mask_hash for part in parts} != {mask.mask_hash}:
            raise another_mask_error(folder, "calibration was")
        weight = settings.ensemble.weight_of(spec.scorer)
        return cls(name, features, scorer, calibration, smoothing, spec.member, regression, weight)
