"""Voxel-wise anomaly scorers.

Scores are higher where a subject differs more from the controls. The sign of the decision function is inverted here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.intensity.derived_maps import Direction
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.whitening import SHRINKAGE, WhitenedLatents, Whitening, fit_whitening, load_whitening
from ..ocsvm.detector_arrays import Precision
from ..ocsvm.voxelwise import DetectorField, fit_detectors
from ..settings import DetectorSettings, ScoreName, resolve_gamma

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
    def fit(cls, features, mask: VoxelMask, settings: DetectorSettings, direction: Direction = "both") -> "Mahalanobis":
        """Fit on the controls' features (S, P, d)."""
        return cls(fit_whitening(features, mask, shrinkage=SHRINKAGE), direction)

    def score(self, features: np.ndarray, *, inside: np.ndarray | None = None, jobs: int | None = None) -> np.ndarray:
        """Return the distances of features (P, d), or the signed z-scores of one side, (P,) float32."""
        white = self.whitening.whiten(features)
        if self.direction == "both":
            return np.sqrt(np.einsum("pd,pd->p", white, white))
        return white[:, 0] if self.direction == "higher" else -white[:, 0]

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
    def fit(cls, features, mask: VoxelMask, settings: DetectorSettings, *, jobs: int | None = None) -> "OneClassSvms":
        """Fit on the controls' features (S, P, d)."""
        whitening = None
        if settings.latent_scaling != "raw":
            diagonal = settings.latent_scaling == "standardised"
            whitening = fit_whitening(features, mask, shrinkage=SHRINKAGE, diagonal=diagonal)
            features = WhitenedLatents(features, whitening)
        gamma = resolve_gamma(settings.gamma, features.shape[2])
        field = fit_detectors(features, nu=settings.nu, gamma=gamma, jobs=jobs, precision=_PRECISION)
        return cls(field, whitening, settings.score)

    def score(self, features: np.ndarray, *, inside: np.ndarray | None = None, jobs: int | None = None) -> np.ndarray:
        """Score features (P, d) as `score_by` says, (P,) float32; higher = more anomalous."""
        if self.whitening is not None:
            features = self.whitening.whiten(features)
        # Merged support vectors have a coordinate more, see `merged`.
        features = np.pad(features, ((0, 0), (0, self.field.dimension - features.shape[1])))
        decision = np.asarray(self.field.decision_function(features, jobs=jobs))
        if self.score_by == "decision":
            scores = -decision
        elif self.score_by == "distance":
            # Computed from the kernel minus 1, for precision where a wide kernel is nearly constant.
            scores = -(decision + self.field.arrays.centred_offset) / self.field.total_dual
        else:
            scores = -np.log(np.maximum(decision / self.field.offset + 1, _SMALLEST_KERNEL_SUM))
        return scores.astype(np.float32)

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
            raise _another_mask_error(folder)
        return cls(field, whitening, settings.score)


def _another_mask_error(folder: Path) -> UserError:
    return UserError(
        f"{private(folder, 'its folder')}: its detectors were fitted on another brain mask, expected that of the "
        "model. Fit the model again."
    )
