"""Combination of calibrated scorers into one anomaly map.

The -log10 p of the scorers are combined by a p-norm. Its limits are the sum (Fisher's method), which favours voxels on
which all scorers agree, and the maximum (Tippett's method), which favours voxels that a single scorer finds. The
scorers are not independent, so the combination is calibrated again, on controls scored by scorers fitted without them.

The combined values are then compared with their surroundings (`surroundings`) and calibrated to the age of the patient
(`ages`), and in a model that was adapted to another scanner calibrated to that scanner (`scanner`). A combination that
was learnt from labelled patients (`learnt`) takes the place of the p-norm and of the calibrations that follow it.

With several encoders, each encoder is one member of the ensemble. A member combines the scorers on its latents and the
scorers that need no encoder. The map is the mean over the members, and the null is computed in the same way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.confounds import Confounds
from ..features.source import FeatureSource
from ..features.truncated_fov import away_from_truncation
from ..labels.fusion import FILE as FUSION
from ..labels.fusion import Fusion
from ..settings import ModelSettings
from ..tensor_file import another_mask_error
from .ages import FILE as AGES
from .ages import AgeCalibration
from .calibrated_scorer import CalibratedScorer
from .calibration import Calibration, z_from_neg_log10_p
from .scanner import FILE as SCANNER
from .scanner import ScannerCalibration
from .surroundings import Surroundings

_CALIBRATION = "combined.safetensors"
_SURROUNDINGS, _COMPARED = "surroundings.safetensors", "compared.safetensors"
LEARNT = "labels"
"""Folder of a combination that was learnt from labels."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Anomaly map of one subject.

    Attributes
    ----------
    z : ndarray, (P,), float32
        Calibrated z-scores; higher = more anomalous. One healthy voxel in a thousand exceeds 3.09. 0 where not scored.
    inside : ndarray of bool, (P,)
        Scored voxels: the subject's brain, without voxels near a truncated field of view.
    ensemble_sd : ndarray or None, (P,), float32
        Standard deviation over the members of the ensemble, each on the ensemble's scale; None for a single member.
    latent_distance : float or None
        See `latent_distance`; None for a model without an encoder.
    """

    z: np.ndarray
    inside: np.ndarray
    ensemble_sd: np.ndarray | None = None
    latent_distance: float | None = None


def latent_distance(neg_log10_p: np.ndarray, inside: np.ndarray) -> float | None:
    """Distance of the latents of a whole brain from those of the controls; None without a scored voxel.

    The median of -log10 p of a scorer of latents, (P,), over the scored voxels, (P,) bool: some 0.3 for a brain like
    the controls, whatever lesions it has, and more if it is unlike them nearly everywhere, as with another scanner.
    """
    return round(float(np.median(neg_log10_p[inside])), 3) if inside.any() else None


@dataclass(frozen=True, eq=False)
class ScorerOutputs:
    """What a combination of scorers is computed from, of one subject.

    Attributes
    ----------
    neg_log10_ps : ndarray, (K, P), float32
        -log10 p of each scorer.
    inside : ndarray of bool, (P,)
        Scored voxels.
    latents : ndarray, (P, L), or None
        Of the first encoder, if they were asked for and there is one.
    """

    neg_log10_ps: np.ndarray
    inside: np.ndarray
    latents: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Learnt:
    """Combination of scorers learnt from labelled patients, calibrated on the controls like that of the model.

    Attributes
    ----------
    fusion : Fusion
    calibration, surroundings
        As in `Ensemble`.
    """

    fusion: Fusion
    calibration: Calibration
    surroundings: Surroundings | None

    def save(self, folder: Path) -> None:
        """Write all parts to a folder."""
        self.fusion.save(folder / FUSION)
        _save_calibrations(folder, self.calibration, self.surroundings)

    @classmethod
    def load(cls, folder: Path, names: Sequence[str], mask: VoxelMask, sigma_mm: float) -> "Learnt":
        """Load a saved combination of the scorers with these names.

        Raises
        ------
        UserError
            A part is missing, damaged, or was fitted on another brain mask.
        """
        return cls(Fusion.load(folder / FUSION, names), *_load_calibrations(folder, mask, sigma_mm))


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Ensemble of calibrated scorers.

    Attributes
    ----------
    mask : VoxelMask
    scorers : tuple of CalibratedScorer
    calibration : Calibration
        Calibration of the combined -log10 p.
    p_norm : float
        See `EnsembleSettings`.
    confounds : Confounds
        Confounds regressed out of the features.
    surroundings : Surroundings or None
        Comparison of the combined -log10 p with their surroundings; None: none.
    ages : AgeCalibration or None
        Calibration to the age of the subject; None: the same at every age.
    scanner : ScannerCalibration or None
        Calibration to another scanner; None: the scanner of the training controls.
    learnt : Learnt or None
        What takes the place of `calibration` and `surroundings`, which are kept; None: nothing.
    """

    mask: VoxelMask
    scorers: tuple[CalibratedScorer, ...]
    calibration: Calibration
    p_norm: float
    confounds: Confounds = field(default_factory=Confounds)
    surroundings: Surroundings | None = None
    ages: AgeCalibration | None = None
    scanner: ScannerCalibration | None = None
    learnt: Learnt | None = None

    @property
    def without_labels(self) -> "Ensemble":
        """The ensemble before a combination was learnt from labels."""
        return self if self.learnt is None else replace(self, learnt=None, scanner=None)

    def predict(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        participant: SubjectRecord | None = None,
        *,
        jobs: int | None = None,
    ) -> Prediction:
        """Compute the anomaly map of one subject.

        Parameters
        ----------
        channels : ndarray, (C, X, Y, Z), float32
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        participant : SubjectRecord, optional
            Source of the covariates, for which the controls' mean is assumed without it, and of the age, without which
            the map is calibrated on controls of all ages.
        jobs : int, optional
            Number of threads; one per core by default.

        Returns
        -------
        Prediction
        """
        outputs = self.outputs(channels, inside, participant, jobs=jobs, latents=self._needs_latents)
        values = self.combine(outputs, participant)
        if self.scanner is not None:
            values = self.scanner.neg_log10_p(values)
        z, *z_of_members = np.where(outputs.inside, z_from_neg_log10_p(values), 0).astype(np.float32)
        distance = None
        if (scorer := self.scorer_of_latents) is not None:
            distance = latent_distance(outputs.neg_log10_ps[self.scorers.index(scorer)], outputs.inside)
        ensemble_sd = np.std(z_of_members, axis=0, ddof=1) if z_of_members else None
        return Prediction(z, outputs.inside, ensemble_sd, distance)

    def neg_log10_p(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        participant: SubjectRecord | None = None,
        *,
        jobs: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute -log10 p of one subject, before the calibration to a scanner; parameters as for `predict`.

        Returns
        -------
        ndarray, (1, P) or (1 + M, P), float32
            Of the ensemble, and of each of its M members if there are several.
        ndarray of bool, (P,)
            Scored voxels.
        """
        outputs = self.outputs(channels, inside, participant, jobs=jobs, latents=self._needs_latents)
        return self.combine(outputs, participant), outputs.inside

    @property
    def _needs_latents(self) -> bool:
        return self.learnt is not None and self.learnt.fusion.needs_latents

    def outputs(
        self,
        channels: np.ndarray,
        inside: np.ndarray,
        participant: SubjectRecord | None = None,
        *,
        jobs: int | None = None,
        latents: bool = False,
    ) -> ScorerOutputs:
        """Compute the -log10 p of each scorer; `latents`: with those of the first encoder. Others as for `predict`."""
        reach_vox = max(scorer.features.reach_vox for scorer in self.scorers)
        inside = away_from_truncation(inside, self.mask, reach_vox)
        confounds = self.confounds.values(channels, inside, participant)
        with_latents, found = self.scorer_of_latents if latents else None, None
        neg_log10_ps = np.empty((len(self.scorers), self.mask.size), np.float32)
        for row, scorer in zip(neg_log10_ps, self.scorers, strict=True):
            features = scorer.features.compute(channels)
            found = features if scorer is with_latents else found
            row[:] = scorer.neg_log10_p_of(features, inside, confounds, jobs=jobs)
        return ScorerOutputs(neg_log10_ps, inside, found)

    @property
    def scorer_of_latents(self) -> CalibratedScorer | None:
        """A scorer of the latents of the first encoder; None without an encoder."""
        return next((scorer for scorer in self.scorers if scorer.member == 0), None)

    def combine(self, outputs: ScorerOutputs, participant: SubjectRecord | None = None) -> np.ndarray:
        """Combine the -log10 p of the scorers; returned as by `neg_log10_p`."""
        calibrated = self if self.learnt is None else self.learnt
        fusion = None if self.learnt is None else self.learnt.fusion
        inside = outputs.inside
        by_member = combined_by_member(
            outputs.neg_log10_ps, self.scorers, inside, self.p_norm, fusion=fusion, latents=outputs.latents
        )
        several = len(by_member) > 1
        every = np.stack([by_member.mean(axis=0), *by_member]) if several else by_member
        values = calibrated.calibration.neg_log10_p(every)
        if calibrated.surroundings is not None:
            divided = values / calibrated.surroundings.divisor(values[0], inside)
            values = calibrated.surroundings.calibration.neg_log10_p(divided)
        if self.ages is not None and participant is not None and participant.age is not None:
            values = self.ages.neg_log10_p(values, participant.age)
        return values

    def warnings(self, participant: SubjectRecord) -> tuple[str, ...]:
        """Return sentences on covariates and an age that the map of a participant is not adjusted for."""
        of_age = () if self.ages is None else self.ages.warnings(participant.age)
        return (*self.confounds.covariates.warnings(participant), *of_age)

    def save(self, folder: Path) -> None:
        """Write each scorer to a subfolder with its name, and the calibration of the combination."""
        for scorer in self.scorers:
            scorer.save(folder / scorer.name)
        _save_calibrations(folder, self.calibration, self.surroundings)
        self.confounds.save(folder)
        if self.learnt is not None:
            self.learnt.save(folder / LEARNT)
        if self.ages is not None:
            self.ages.save(folder / AGES)
        if self.scanner is not None:
            self.scanner.save(folder / SCANNER)

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, source: FeatureSource, settings: ModelSettings) -> "Ensemble":
        """Load a saved model.

        Raises
        ------
        UserError
            A part is missing, damaged, or was fitted on another brain mask.
        """
        sigma_mm = settings.ensemble.surroundings_mm
        calibration, surroundings = _load_calibrations(folder, mask, sigma_mm)
        # The record of the model's files tells whether one of these files is missing.
        ages = AgeCalibration.load(folder / AGES) if (folder / AGES).exists() else None
        scanner = ScannerCalibration.load(folder / SCANNER) if (folder / SCANNER).exists() else None
        parts = [*(ages.calibrations if ages else ()), *([scanner.calibration] if scanner else [])]
        _require_mask(folder, mask, parts)
        # Few controls allow no learned scorer, see `fit_ensemble`.
        specs = {
            name: spec
            for name, spec in source.specs(settings.ensemble.scorers).items()
            if spec.scorer != "learned" or (folder / name).is_dir()
        }
        confounds = Confounds.load(folder, mask, source, settings.ensemble)
        scorers = tuple(
            CalibratedScorer.load(name, spec, folder / name, mask, source, settings, confounds.size > 0)
            for name, spec in specs.items()
        )
        learnt = None
        if (folder / LEARNT / FUSION).exists():
            learnt = Learnt.load(folder / LEARNT, [scorer.name for scorer in scorers], mask, sigma_mm)
        p_norm = settings.ensemble.p_norm
        return cls(mask, scorers, calibration, p_norm, confounds, surroundings, ages, scanner, learnt)


def _save_calibrations(folder: Path, calibration: Calibration, surroundings: Surroundings | None) -> None:
    calibration.save(folder / _CALIBRATION)
    if surroundings is not None:
        surroundings.save(folder / _SURROUNDINGS)
        surroundings.calibration.save(folder / _COMPARED)


def _load_calibrations(folder: Path, mask: VoxelMask, sigma_mm: float) -> tuple[Calibration, Surroundings | None]:
    calibration, surroundings = Calibration.load(folder / _CALIBRATION), None
    _require_mask(folder, mask, [calibration])
    if sigma_mm > 0:
        compared = Calibration.load(folder / _COMPARED)
        _require_mask(folder, mask, [compared])
        surroundings = Surroundings.load(folder / _SURROUNDINGS, mask, sigma_mm, compared)
    return calibration, surroundings


def _require_mask(folder: Path, mask: VoxelMask, parts: Sequence[Calibration]) -> None:
    if any(part.mask_hash != mask.mask_hash or len(part.scale) != mask.size for part in parts):
        raise another_mask_error(folder, "calibration was")


def combined_by_member(
    neg_log10_ps: Iterable[np.ndarray],
    scorers: Sequence[CalibratedScorer],
    inside: np.ndarray,
    p_norm: float,
    *,
    fusion: Fusion | None = None,
    latents: np.ndarray | None = None,
) -> np.ndarray:
    """Combine the -log10 p of one subject for each member of the ensemble, (M, P) float32.

    Parameters
    ----------
    neg_log10_ps : ndarray, (K, P), or sequence of ndarray, (P,)
        -log10 p of each scorer.
    scorers : sequence of CalibratedScorer
        With their weights; those without an encoder belong to every member.
    inside : ndarray of bool, (P,)
        Brain mask of the subject.
    p_norm : float
    fusion : Fusion, optional
        Further weights of the scorers and a factor of the result, learnt from labels.
    latents : ndarray, (P, L), optional
        For `fusion`.
    """
    distinct = sorted({scorer.member for scorer in scorers if scorer.member is not None}) or [None]
    weighted = [scorer.weight * values for scorer, values in zip(scorers, neg_log10_ps, strict=True)]
    if fusion is not None:
        weighted = fusion.weighted(weighted)
    pairs = list(zip(weighted, (scorer.member for scorer in scorers), strict=True))
    found = np.stack([combined((s for s, m in pairs if m in (None, member)), inside, p_norm) for member in distinct])
    return found if fusion is None else (found * fusion.factor(neg_log10_ps, latents)).astype(np.float32)


def combined(neg_log10_ps: Iterable[np.ndarray], inside: np.ndarray, p_norm: float) -> np.ndarray:
    """Combine the -log10 p (P,) of the scorers of one subject by a p-norm: (P,) float32, 0 outside the brain."""
    values = np.stack([np.asarray(neg_log10_p, np.float64) for neg_log10_p in neg_log10_ps])
    largest = np.maximum(values.max(axis=0), 1e-9)  # Factored out to avoid overflow.
    total = largest * np.power(np.power(values / largest, p_norm).sum(axis=0), 1 / p_norm)
    return np.where(inside, total, 0).astype(np.float32)
