"""Voxel-wise anomaly scorers.

Scores are higher where a subject differs more from the controls. The sign of the decision function is inverted here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ...preprocessing.intensity.derived_maps import Direction
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.subsets import Subsets
from ..features.whitening import Whitening, load_whitening
from ..ocsvm.blocks import as_array
from ..ocsvm.detector_arrays import DetectorArrays, GrowingArrays, Precision
from ..ocsvm.kernel import checked_gamma
from ..ocsvm.voxelwise import DetectorField, fit_detector_block
from ..settings import MOST_CONTROLS_OF_A_DETECTOR, DetectorSettings, ScoreName
from ..tensor_file import another_mask_error
from .one_pass import OnePass

_FIELD, _WHITENING = "field", "whitening.safetensors"
_PRECISION: Precision = "float16"
"""Data type of the stored support vectors; it moves a score by at most 0.4 % of the spread of the scores."""
_SMALLEST_KERNEL_SUM = 1e-12
"""Floor of the kernel sum in the log-ratio, as a share of the offset."""


class Scorer(Protocol):
    """Voxel-wise scorer, fitted on controls."""

    def score(self, features: np.ndarray, *, inside: np.ndarray, jobs: int | None = None) -> np.ndarray:
        """Score the features (P, d) of one subject with brain mask (P,): (P,) float32; higher = more anomalous."""
        ...

    def save(self, folder: Path) -> None:
        """Write the scorer to a folder."""
        ...


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Mahalanobis distance to the controls' mean; for a single feature per voxel, the z-score.

    Attributes
    ----------
    whitening : Whitening
    direction : {"both", "higher", "lower"}
        Side that is anomalous. "higher" and "lower" need a single feature per voxel.
    """

    whitening: Whitening
    direction: Direction = "both"

    @classmethod
    def fit(cls, features: np.ndarray, mask: VoxelMask, direction: Direction = "both") -> "Mahalanobis":
        """Fit on the controls' features (S, P, d)."""
        return _fitted_on_all(features, mask, DistanceParts(direction))

    def score(self, features: np.ndarray, *, inside: np.ndarray | None = None, jobs: int | None = None) -> np.ndarray:
        """Return the distances of features (P, d), or the signed z-scores of one side, (P,) float32."""
        return _distances(self.whitening.whiten(features), self.direction)

    def save(self, folder: Path) -> None:
        """Write the whitening to a folder."""
        self.whitening.save(folder / _WHITENING)

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, direction: Direction = "both") -> "Mahalanobis":
        """Load a saved scorer.

        Raises
        ------
        UserError
            A file is missing, damaged, or was fitted on another brain mask.
        """
        return cls(load_whitening(folder / _WHITENING, mask), direction)


@dataclass(frozen=True, eq=False)
class OneClassSvms:
    """Voxel-wise one-class SVMs.

    Attributes
    ----------
    field : DetectorField
    whitening : Whitening or None
        Whitening applied to the features before the detectors.
    score_by : {"distance", "decision", "log_ratio"}
        See `DetectorSettings`. All three give the same ranking at a single voxel.
    """

    field: DetectorField
    whitening: Whitening | None
    score_by: ScoreName

    @classmethod
    def fit(
        cls, features: np.ndarray, mask: VoxelMask, settings: DetectorSettings, *, jobs: int | None = None
    ) -> "OneClassSvms":
        """Fit on the controls' features (S, P, d)."""
        return _fitted_on_all(features, mask, SvmParts(settings, features.shape[2]), jobs)

    def score(self, features: np.ndarray, *, inside: np.ndarray | None = None, jobs: int | None = None) -> np.ndarray:
        """Score features (P, d) as `score_by` says, (P,) float32; higher = more anomalous."""
        if self.whitening is not None:
            features = self.whitening.whiten(features)
        # Merged support vectors have a coordinate more, see `merged`.
        features = np.pad(features, ((0, 0), (0, self.field.dimension - features.shape[1])))
        return _svm_scores(self.field, features, self.score_by, jobs)

    def save(self, folder: Path) -> None:
        """Write the detectors and, if there is one, the whitening to a folder."""
        self.field.save(folder / _FIELD)
        if self.whitening is not None:
            self.whitening.save(folder / _WHITENING)

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, settings: DetectorSettings) -> "OneClassSvms":
        """Load a saved scorer.

        Raises
        ------
        UserError
            A part is missing or was fitted on another brain mask.
        """
        whitening = load_whitening(folder / _WHITENING, mask) if settings.latent_scaling != "raw" else None
        field = DetectorField.load(folder / _FIELD)
        if len(field) != mask.size:
            raise another_mask_error(folder, "detectors were")
        return cls(field, whitening, settings.score)


# -- fit, block by block -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class DistanceParts:
    """Parts of `Mahalanobis`, which consist of the whitening alone.

    Attributes
    ----------
    direction : {"both", "higher", "lower"}
    """

    direction: Direction = "both"
    whitened: bool = field(default=True, init=False)
    diagonal: bool = field(default=False, init=False)
    most_controls: int = field(default=0, init=False)

    def fit(self, features: np.ndarray | torch.Tensor, first: int, weights: np.ndarray | None) -> None:
        """Do nothing."""

    def score(self, part: None, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Score whitened features (S, n, d), (S, n) float32."""
        return _distances(as_array(features) if isinstance(features, torch.Tensor) else features, self.direction)

    def add(self, part: None) -> None:
        """Do nothing."""

    def scorer(self, whitening: Whitening | None) -> Mahalanobis:
        """Return the scorer of all voxels."""
        if whitening is None:
            raise ValueError("the Mahalanobis distance needs a whitening")
        return Mahalanobis(whitening, self.direction)


class SvmParts:
    """Parts of `OneClassSvms`: detectors of blocks of voxels."""

    def __init__(self, settings: DetectorSettings, dimension: int):
        self.whitened = settings.latent_scaling != "raw"
        self.diagonal = settings.latent_scaling == "standardised"
        self.most_controls = MOST_CONTROLS_OF_A_DETECTOR
        self._settings = settings
        self._gamma = checked_gamma(settings.gamma, dimension)
        self._precision: Precision = _PRECISION
        self._growing = GrowingArrays()

    def fit(self, features: np.ndarray | torch.Tensor, first: int, weights: np.ndarray | None) -> DetectorField:
        """Fit the detectors of n voxels on features (S, n, d) with weights (S,)."""
        arrays = fit_detector_block(features, self._settings.nu, self._gamma, self._precision, first, weights)
        return self._field(arrays)

    def score(self, part: DetectorField, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Score features (S, n, d), (S, n) float32; NaN where they are missing."""
        return _svm_scores(part, features, self._settings.score, 1)

    def add(self, part: DetectorField) -> None:
        """Keep the detectors of the next voxels."""
        self._growing.add(part.arrays)

    def scorer(self, whitening: Whitening | None) -> OneClassSvms:
        """Return the scorer of all voxels."""
        return OneClassSvms(self._field(self._growing.arrays()), whitening, self._settings.score)

    def _field(self, arrays: DetectorArrays) -> DetectorField:
        return DetectorField(arrays, float(self._settings.nu), self._gamma)


def _fitted_on_all(features: np.ndarray, mask: VoxelMask, parts: DistanceParts | SvmParts, jobs: int | None = None):
    everyone = Subsets.everyone(np.empty((len(features), 0)))
    return OnePass(mask, everyone, jobs).fit(lambda controls: features[controls], parts)[0]


def _distances(white: np.ndarray, direction: Direction) -> np.ndarray:
    """Lengths of whitened features (..., d), or the signed z-scores of one side, (...) float32."""
    if direction == "both":
        return np.sqrt(np.einsum("...d,...d->...", white, white))
    return white[..., 0] if direction == "higher" else -white[..., 0]


def _svm_scores(field: DetectorField, features, score_by: ScoreName, jobs: int | None) -> np.ndarray:
    """Score features (..., P, d) in the space of the detectors, (..., P) float32."""
    decision = field.decision_function(features, jobs=jobs)
    if isinstance(decision, torch.Tensor):
        decision = as_array(decision)
    if score_by == "decision":
        scores = -decision
    elif score_by == "distance":
        # Computed from the kernel minus 1, for precision where a wide kernel is nearly constant.
        scores = -(decision + field.arrays.centred_offset) / field.total_dual
    else:
        scores = -np.log(np.maximum(decision / field.offset + 1, _SMALLEST_KERNEL_SUM))
    return scores.astype(np.float32)
