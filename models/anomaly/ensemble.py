"""Several readers, one map: their surprises are combined, and the result is calibrated like any other score.

The sum of -log10 p, Fisher's way to combine tests, favours what all readers agree on; the largest, Tippett's, what one
of them alone sees. Between them lie the power means. Whichever it is, the readers look at one brain and are anything
but independent, so the combination's own null is what counts: that of the same controls, each read by readers that
have not seen it.

Of several encoders, each is combined with the readers that need none; the map is the mean over these members, and the
null is put together in the same way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.confounds import Confounds
from ..features.source import FeatureSource
from ..features.truncated_fov import away_from_truncation
from ..settings import ModelSettings
from .calibrated_scorer import CalibratedScorer
from .calibration import Calibration

_CALIBRATION = "combined.safetensors"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the readers make of one subject.

    Attributes
    ----------
    z : ndarray, (P,), float32
        Standard deviations of a normal distribution: a healthy voxel exceeds 3.09 once in a thousand. Higher = more
        anomalous. 0 where it was not read.
    inside : ndarray of bool, (P,)
        Where it was read: the subject's brain, without what lies beside a cut.
    ensemble_sd : ndarray or None, (P,), float32
        Standard deviation over the members of an ensemble, each read on the ensemble's scale; None for one alone.
    """

    z: np.ndarray
    inside: np.ndarray
    ensemble_sd: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AnomalyModel:
    """All the readers of a model.

    Attributes
    ----------
    grid : VoxelMask
    scorers : tuple of CalibratedScorer
    calibration : Calibration
        Of the combined surprises.
    p_norm : float
        See `EnsembleSettings`.
    confounds : Confounds
        What the readers are adjusted for.
    """

    grid: VoxelMask
    scorers: tuple[CalibratedScorer, ...]
    calibration: Calibration
    p_norm: float
    confounds: Confounds = field(default_factory=Confounds)

    def predict(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        participant: SubjectRecord | None = None,
        *,
        jobs: int | None = None,
    ) -> Prediction:
        """Read one subject.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        participant : SubjectRecord, optional
            Whose covariates are adjusted for; without it, the subject is read at the controls' mean.
        jobs : int, optional
            Threads; one a core by default.
        """
        reach_vox = max(scorer.features.reach_vox for scorer in self.scorers)
        inside = away_from_truncation(inside, self.grid, reach_vox)
        confounds = self.confounds.values(channels, inside, participant)
        neg_log10_ps = [scorer.neg_log10_p(channels, inside, confounds, jobs=jobs) for scorer in self.scorers]
        members = [scorer.member for scorer in self.scorers]
        by_member = combined_by_member(neg_log10_ps, members, inside, self.p_norm)
        z = np.where(inside, self.calibration.z(by_member.mean(axis=0)), 0).astype(np.float32)
        if len(by_member) == 1:
            return Prediction(z, inside)
        apart = self.calibration.z(by_member).std(axis=0, ddof=1)
        return Prediction(z, inside, np.where(inside, apart, 0).astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write every reader to a folder of its own name, and the calibration of their sum."""
        for scorer in self.scorers:
            scorer.save(folder / scorer.name)
        self.calibration.save(folder / _CALIBRATION)
        self.confounds.save(folder)

    @classmethod
    def load(cls, folder: Path, grid: VoxelMask, source: FeatureSource, settings: ModelSettings) -> "AnomalyModel":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            A part is missing, damaged, or of other locations.
        """
        calibration = Calibration.load(folder / _CALIBRATION)
        if calibration.mask_hash != grid.mask_hash or len(calibration.spread) != grid.size:
            raise UserError(
                f"{private(folder, 'its folder')}: its calibration is of another brain mask. Fit the model again."
            )
        specs = source.specs(settings.ensemble.scorers)
        confounds = Confounds.load(folder, grid, source, settings.ensemble)
        scorers = tuple(
            CalibratedScorer.load(name, spec, folder / name, grid, source, settings, confounds.size > 0)
            for name, spec in specs.items()
        )
        return cls(grid, scorers, calibration, settings.ensemble.p_norm, confounds)


def combined_by_member(
    neg_log10_ps: Sequence[np.ndarray],
    members: Sequence[int | None],
    inside: np.ndarray,
    p_norm: float,
) -> np.ndarray:
    """Combine the surprises (P,) of one subject, once for each member: (M, P) float32.

    Parameters
    ----------
    neg_log10_ps : sequence of ndarray, (P,)
        One a scorer.
    members : sequence of int or None
        Whose codes it reads; a reader of no codes stands by every member.
    """
    each = sorted({member for member in members if member is not None}) or [None]
    named = list(zip(neg_log10_ps, members, strict=True))
    return np.stack([combined((s for s, m in named if m in (None, member)), inside, p_norm) for member in each])


def combined(neg_log10_ps: Iterable[np.ndarray], inside: np.ndarray, p_norm: float) -> np.ndarray:
    """Combine the surprises (P,) of one subject: (P,) float32, 0 outside its brain."""
    every = np.stack([np.asarray(neg_log10_p, np.float64) for neg_log10_p in neg_log10_ps])
    largest = np.maximum(every.max(axis=0), 1e-9)  # Divided out, so that no power is too large a number.
    total = largest * np.power(np.power(every / largest, p_norm).sum(axis=0), 1 / p_norm)
    return np.where(inside, total, 0).astype(np.float32)
