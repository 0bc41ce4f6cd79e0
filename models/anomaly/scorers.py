"""How unlike the controls a subject's features are, at every location. Here, and nowhere else, the sign turns over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.intensity.derived_maps import Direction
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.whitening import WhitenedLatents, Whitening, fit_whitening
from ..ocsvm.voxelwise import DetectorField, fit_detectors
from ..settings import DetectorSettings, ScoreName, resolve_gamma

_FIELD, _WHITENING = "field", "whitening.safetensors"
_LEAST_KERNEL = 1e-12
"""As a share of the offset: further away than that, all is equally far for the logarithm."""


class Scorer(Protocol):
    """Fitted on controls, scores a subject."""

    def score(self, features: np.ndarray, *, jobs: int | None = None) -> np.ndarray:
        """Features (P, d) of one subject to (P,) scores, float32; higher = more anomalous."""
        ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Distance from the controls' mean, in their own standard deviations; for one number a location, the z-score.

    Attributes
    ----------
    whitening : Whitening
    direction : {"both", "higher", "lower"}
        One-sided for one number a location only.
    """

    whitening: Whitening
    direction: Direction = "both"

    @classmethod
    def fit(cls, features, grid: VoxelMask, settings: DetectorSettings, direction: Direction = "both") -> "Mahalanobis":
        """Fit on the controls' features (S, P, d)."""
        return cls(fit_whitening(features, grid, shrinkage=settings.shrinkage), direction)

    def score(self, features: np.ndarray, *, jobs: int | None = None) -> np.ndarray:
        white = self.whitening.whiten(features)
        if self.direction == "both":
            return np.sqrt(np.einsum("pd,pd->p", white, white))
        return white[:, 0] if self.direction == "higher" else -white[:, 0]

    def save(self, folder: Path) -> None:
        self.whitening.save(folder / _WHITENING)

    @classmethod
    def load(cls, folder: Path, grid: VoxelMask, direction: Direction = "both") -> "Mahalanobis":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing, damaged, or of other locations.
        """
        return cls(_whitening_of(folder, grid), direction)


@dataclass(frozen=True, eq=False)
class OneClassSvms:
    """One one-class SVM at every location.

    Attributes
    ----------
    field : DetectorField
    whitening : Whitening, optional
        The one that the detectors were fitted through.
    score_by : {"distance", "decision", "log_ratio"}
        See `DetectorSettings`. At one location all of them rank alike.
    """

    field: DetectorField
    whitening: Whitening | None
    score_by: ScoreName

    @classmethod
    def fit(cls, features, grid: VoxelMask, settings: DetectorSettings, *, jobs: int | None = None) -> "OneClassSvms":
        """Fit on the controls' features (S, P, d)."""
        whitening = None
        if settings.latent_scaling != "raw":
            diagonal = settings.latent_scaling == "standardised"
            whitening = fit_whitening(features, grid, shrinkage=settings.shrinkage, diagonal=diagonal)
            features = WhitenedLatents(features, whitening)
        gamma = resolve_gamma(settings.gamma, features.shape[2])
        field = fit_detectors(features, nu=settings.nu, gamma=gamma, jobs=jobs, precision=settings.precision)
        return cls(field, whitening, settings.score)

    def score(self, features: np.ndarray, *, jobs: int | None = None) -> np.ndarray:
        if self.whitening is not None:
            features = self.whitening.whiten(features)
        decision = np.asarray(self.field.decision_function(features, jobs=jobs))
        if self.score_by == "decision":
            scores = -decision
        elif self.score_by == "distance":
            # The kernel less 1, which keeps its digits where a wide one is nearly flat.
            scores = -(decision + self.field.arrays.centred_offset) / self.field.total_dual
        else:
            scores = -np.log(np.maximum(decision / self.field.offset + 1, _LEAST_KERNEL))
        return scores.astype(np.float32)

    def save(self, folder: Path) -> None:
        self.field.save(folder / _FIELD)
        if self.whitening is not None:
            self.whitening.save(folder / _WHITENING)

    @classmethod
    def load(cls, folder: Path, grid: VoxelMask, settings: DetectorSettings) -> "OneClassSvms":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            A part is missing, or of other locations.
        """
        whitening = _whitening_of(folder, grid) if settings.latent_scaling != "raw" else None
        field = DetectorField.load(folder / _FIELD)
        if len(field) != grid.size:
            raise _of_other_locations(folder)
        return cls(field, whitening, settings.score)


def _whitening_of(folder: Path, grid: VoxelMask) -> Whitening:
    whitening = Whitening.load(folder / _WHITENING)
    if len(whitening.mean) != grid.size or whitening.mask_hash != grid.mask_hash:
        raise _of_other_locations(folder)
    return whitening


def _of_other_locations(folder: Path) -> UserError:
    return UserError(
        f"{private(folder, 'its folder')}: its detectors are of other locations than the brain mask. Fit the model "
        "again."
    )
