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
from ...preprocessing.patches.voxel_mask import PatchGrid
from ..confounds.confounds import Nuisances
from ..features.source import Sight
from ..features.truncated_fov import clear_of_cuts
from ..settings import ModelSettings
from .calibrated_scorer import Reader
from .calibration import Calibration

_CALIBRATION = "fused.safetensors"


@dataclass(frozen=True, eq=False)
class Reading:
    """What the readers make of one subject.

    Attributes
    ----------
    z : ndarray, (P,), float32
        Standard deviations of a normal distribution: a healthy voxel exceeds 3.09 once in a thousand. Higher = more
        anomalous. 0 where it was not read.
    inside : ndarray of bool, (P,)
        Where it was read: the subject's brain, without what lies beside a cut.
    spread : ndarray or None, (P,), float32
        Standard deviation over the members of an ensemble, each read on the ensemble's scale; None for one alone.
    """

    z: np.ndarray
    inside: np.ndarray
    spread: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Fusion:
    """All the readers of a model.

    Attributes
    ----------
    grid : PatchGrid
    readers : tuple of Reader
    calibration : Calibration
        Of the combined surprises.
    power : float
        See `FusionSettings`.
    nuisances : Nuisances
        What the readers are adjusted for.
    """

    grid: PatchGrid
    readers: tuple[Reader, ...]
    calibration: Calibration
    power: float
    nuisances: Nuisances = field(default_factory=Nuisances)

    def read(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        person: SubjectRecord | None = None,
        *,
        jobs: int | None = None,
    ) -> Reading:
        """Read one subject.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            The subject's own brain.
        person : SubjectRecord, optional
            Whose covariates are adjusted for; without it, the subject is read at the controls' mean.
        jobs : int, optional
            Threads; one a core by default.
        """
        reach_vox = max(reader.features.reach_vox for reader in self.readers)
        inside = clear_of_cuts(inside, self.grid, reach_vox)
        nuisances = self.nuisances.of(channels, inside, person)
        surprises = [reader.surprise(channels, inside, nuisances, jobs=jobs) for reader in self.readers]
        members = [reader.member for reader in self.readers]
        combined = fused_by_member(surprises, members, inside, self.power)
        z = np.where(inside, self.calibration.z(combined.mean(axis=0)), 0).astype(np.float32)
        if len(combined) == 1:
            return Reading(z, inside)
        apart = self.calibration.z(combined).std(axis=0, ddof=1)
        return Reading(z, inside, np.where(inside, apart, 0).astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write every reader to a folder of its own name, and the calibration of their sum."""
        for reader in self.readers:
            reader.save(folder / reader.name)
        self.calibration.save(folder / _CALIBRATION)
        self.nuisances.save(folder)

    @classmethod
    def load(cls, folder: Path, grid: PatchGrid, sight: Sight, settings: ModelSettings) -> "Fusion":
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
        plans = sight.plans(settings.fusion.readers)
        nuisances = Nuisances.load(folder, grid, sight, settings.fusion)
        readers = tuple(
            Reader.load(name, plan, folder / name, grid, sight, settings, nuisances.size > 0)
            for name, plan in plans.items()
        )
        return cls(grid, readers, calibration, settings.fusion.power, nuisances)


def fused_by_member(
    surprises: Sequence[np.ndarray],
    members: Sequence[int | None],
    inside: np.ndarray,
    power: float,
) -> np.ndarray:
    """Combine the surprises (P,) of one subject, once for each member: (M, P) float32.

    Parameters
    ----------
    surprises : sequence of ndarray, (P,)
        One a reader.
    members : sequence of int or None
        Whose codes it reads; a reader of no codes stands by every member.
    """
    each = sorted({member for member in members if member is not None}) or [None]
    named = list(zip(surprises, members, strict=True))
    return np.stack([fused((s for s, m in named if m in (None, member)), inside, power) for member in each])


def fused(surprises: Iterable[np.ndarray], inside: np.ndarray, power: float) -> np.ndarray:
    """Combine the surprises (P,) of one subject: (P,) float32, 0 outside its brain."""
    every = np.stack([np.asarray(surprise, np.float64) for surprise in surprises])
    largest = np.maximum(every.max(axis=0), 1e-9)  # Divided out, so that no power is too large a number.
    total = largest * np.power(np.power(every / largest, power).sum(axis=0), 1 / power)
    return np.where(inside, total, 0).astype(np.float32)
