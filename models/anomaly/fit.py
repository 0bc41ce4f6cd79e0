"""From controls to a fused model: features, scorers, their null by cross-fitting, calibrations.

Every control is scored by scorers fitted on the others' folds. The encoder is shared by all folds: to train it again
for each would cost as much as everything else together, and the controls it has not seen show what that leaves
(the calibration row of `benchmarks/method.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord, participant_of_key
from ...preprocessing.patches.volume_store import VolumeStore
from ..confounds.brain_components import BrainComponents, affordable, sampled
from ..confounds.confounds import WHOLE_BRAIN, Confounds
from ..confounds.covariates import Covariates
from ..confounds.regression import ConfoundRegression, ResidualisedLatents
from ..features.extractors import Features, PatchFeatures
from ..features.feature_store import LatentStore
from ..features.source import FeatureSource, ScorerSpec
from ..features.truncated_fov import away_from_truncation
from ..settings import ModelSettings
from .calibrated_scorer import CalibratedScorer
from .calibration import Calibration, calibrate, folds_of, require_enough_participants, z_from_neg_log10_p
from .ensemble import AnomalyModel, combined_by_member
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing, smoothed

NULL = "null"
"""Folder of the null maps among the controls' features."""
_FEWEST_AT_A_PLACE = 2
"""As many controls a variance needs."""

Progress = Callable[[int, int], None]


def fit_anomaly_model(
    store: VolumeStore,
    train: Sequence[str],
    source: FeatureSource,
    settings: ModelSettings,
    scratch: Path,
    *,
    seed: int,
    participants: Sequence[SubjectRecord] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> AnomalyModel:
    """Fit every reader of the settings on the training controls, and calibrate them.

    Parameters
    ----------
    store : VolumeStore
    train : sequence of str
        Keys of the training controls.
    source : FeatureSource
    settings : ModelSettings
    scratch : Path
        Folder for the controls' features and their null: the fused z-map of each, read by readers that have not seen
        it, as ``null/<key>.npy`` (P,). It stays behind when the model travels.
    seed : int
    participants : sequence of SubjectRecord
        The training controls; needed where the settings name covariates.
    jobs : int, optional
        Threads; one a core by default.
    progress : callable, optional
        Called with (steps done, steps in all).

    Raises
    ------
    UserError
        Too few controls, features that cannot be fitted, or a covariate that tells nothing.
    """
    require_enough_participants(train)
    by_key = {participant.key: participant for participant in participants}
    controls = [by_key[key] for key in train] if settings.ensemble.covariates else []
    fit = _Fit(store, tuple(train), controls, source, settings, scratch, seed, jobs, progress)
    return fit.fused([fit.reader(name) for name in fit.specs])


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the controls, and what they tell of everybody.

    Attributes
    ----------
    controls : ndarray of int
    confounds : Confounds
    numbers : ndarray, (S, k)
        The nuisances of all controls.
    """

    controls: np.ndarray
    confounds: Confounds
    numbers: np.ndarray


class _Fit:
    def __init__(
        self,
        store: VolumeStore,
        train: tuple[str, ...],
        controls: Sequence[SubjectRecord],
        source: FeatureSource,
        settings: ModelSettings,
        scratch: Path,
        seed: int,
        jobs: int | None,
        progress: Progress | None,
    ):
        self.store, self.train, self.source, self.settings, self.scratch = store, train, source, settings, scratch
        self.grid, self.seed, self.jobs, self.progress = store.grid, seed, jobs, progress
        self.folds = folds_of([participant_of_key(key) for key in train], settings.ensemble.folds, seed)
        self.specs = source.specs(settings.ensemble.scorers)
        reach_vox = max(source.reach_vox(spec, self.grid) for spec in self.specs.values())
        brains = (self.grid.transform(np.asarray(store.inside[row])) for row in store.index(train))
        self.inside = np.stack([away_from_truncation(brain, self.grid, reach_vox) for brain in brains])
        self.features: dict[str, Features] = {}
        self.covariates = Covariates.learn(settings.ensemble.covariates, controls)
        everybody = np.arange(len(train))
        parts = [*(np.setdiff1d(everybody, fold) for fold in self.folds), everybody]
        # Where a control has no brain it counts for nothing, unless too few would be left to tell what is normal.
        least = np.min([self.inside[part].sum(axis=0) for part in parts], axis=0)
        self.counts = self.inside | (least < _FEWEST_AT_A_PLACE)
        known = np.array([self.covariates.values(participant) for participant in controls]).reshape(len(train), -1)
        *self.apart, self.whole = self.parts(parts, known)
        kinds = {spec.feature_key for spec in self.specs.values()}
        self.steps, self.done = len(kinds) * len(train) + len(self.specs) * (len(self.folds) + 1), 0

    def parts(self, parts: Sequence[np.ndarray], known: np.ndarray) -> list[_Part]:
        """What features are adjusted for, as each part of the controls tells it; `known`: their covariates (S, k)."""
        participants = [len({participant_of_key(self.train[number]) for number in part}) for part in parts]
        size = affordable(self.settings.ensemble.brain_components, min(participants))
        if size == 0:
            return [_Part(part, Confounds(self.covariates), known) for part in parts]
        voxels, found = self.source.features(WHOLE_BRAIN, self.grid), []
        brains = [
            sampled(voxels.compute(seen), inside) for seen, inside in zip(self.channels(), self.inside, strict=True)
        ]
        for part in parts:
            brain_components = BrainComponents.learn(voxels, np.stack([brains[number] for number in part]), size)
            weights = np.stack([brain_components.weights(brain) for brain in brains])
            found.append(
                _Part(part, Confounds(self.covariates, brain_components), np.concatenate([known, weights], axis=1))
            )
        return found

    def reader(self, name: str) -> CalibratedScorer:
        """Fit and calibrate one reader; its null surprises go to the folder `null/<name>`."""
        spec = self.specs[name]
        kind = spec.feature_key
        if kind not in self.features:
            self.features[kind] = self.stored_features(spec)
        calibration, null = self.calibrated(self.cross_fitted(spec))
        sigma_mm, smoothing = self.settings.ensemble.smoothing_mm, None
        if sigma_mm > 0:
            for row, brain in zip(null, self.inside, strict=True):
                row[:] = smoothed(row, brain, self.grid, sigma_mm)
            of_smoothed, null = self.calibrated(null)
            smoothing = Smoothing(self.grid, sigma_mm, of_smoothed)
        neg_log10_ps = LatentStore.create(self.scratch / NULL / name, self.grid, 1)
        for key, neg_log10_p in zip(self.train, null, strict=True):
            neg_log10_ps.write(key, neg_log10_p[:, None])
        scorer, regression = self.scorer(spec, self.whole)
        return CalibratedScorer(name, self.features[kind], scorer, calibration, smoothing, spec.member, regression)

    def fused(self, scorers: Sequence[CalibratedScorer]) -> AnomalyModel:
        """Calibrate the readers' combination; its null z-maps go to the folder `null`."""
        p_norm = self.settings.ensemble.p_norm
        stores = [LatentStore.open(self.scratch / NULL / reader.name, self.train, self.grid) for reader in scorers]
        members = [reader.member for reader in scorers]
        total = np.empty(self.inside.shape, np.float32)
        for row, key, brain in zip(total, self.train, self.inside, strict=True):
            neg_log10_ps = [store.subject(key)[:, 0] for store in stores]
            row[:] = combined_by_member(neg_log10_ps, members, brain, p_norm).mean(axis=0)
        calibration, null = self.calibrated(total)
        maps = LatentStore.create(self.scratch / NULL, self.grid, 1)
        for key, neg_log10_p, brain in zip(self.train, null, self.inside, strict=True):
            maps.write(key, np.where(brain, z_from_neg_log10_p(neg_log10_p), 0)[:, None])
        return AnomalyModel(self.grid, tuple(scorers), calibration, p_norm, self.whole.confounds)

    def stored_features(self, spec: ScorerSpec) -> Features:
        """Write the features of every control, and say how they are made."""
        if spec.features == "patches":
            size = self.settings.ensemble.patch_components
            controls = zip(self.channels(), self.inside, strict=True)
            features: Features = PatchFeatures.learn(
                controls, self.grid, self.source.rows(spec), size=size, seed=self.seed
            )
        else:
            features = self.source.features(spec, self.grid)
        latents = LatentStore.create(self.scratch / spec.feature_key, self.grid, features.size)
        for key, seen, counts in zip(self.train, self.channels(), self.counts, strict=True):
            latents.write(key, features.compute(seen), there=counts)
            self.step()
        return features

    def cross_fitted(self, spec: ScorerSpec) -> np.ndarray:
        """Scores (S, P) of every control by a scorer that was fitted without its fold; 0 where it has no brain."""
        null = np.empty(self.inside.shape, np.float32)
        seen = self.latents(spec, self.train)
        for fold, part in zip(self.folds, self.apart, strict=True):
            scorer, regression = self.scorer(spec, part)
            for number in fold:
                features = seen.subject(self.train[number])
                if regression is not None:
                    features = regression.residualise(features, part.numbers[number])
                scores = scorer.score(features, jobs=self.jobs)
                null[number] = np.where(self.inside[number], scores, 0)
            del scorer, regression  # The next ones need the room.
        return null

    def scorer(self, spec: ScorerSpec, part: _Part) -> tuple[Scorer, ConfoundRegression | None]:
        """Fit on some of the controls: what their nuisances explain, then the scorer on the rest."""
        seen, detector = self.latents(spec, [self.train[number] for number in part.controls]), self.settings.detector
        regression, latents = None, seen
        if part.confounds.size:
            numbers = part.numbers[part.controls]
            regression = ConfoundRegression.fit(seen, numbers, self.grid)
            latents = ResidualisedLatents(seen, regression, numbers)
        if spec.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.fit(latents, self.grid, detector, jobs=self.jobs)
        else:
            scorer = Mahalanobis.fit(latents, self.grid, detector, spec.direction)
        self.step()
        return scorer, regression

    def channels(self) -> Iterator[np.ndarray]:
        """Channels (C, X, Y, Z) float32 of one control after the other."""
        for row in self.store.index(self.train):
            yield self.store.volumes[row].astype(np.float32)
            self.store.release_pages()

    def latents(self, spec: ScorerSpec, keys: Sequence[str]) -> LatentStore:
        return LatentStore.open(self.scratch / spec.feature_key, keys, self.grid)

    def calibrated(self, null: np.ndarray) -> tuple[Calibration, np.ndarray]:
        ensemble = self.settings.ensemble
        return calibrate(
            null,
            self.inside,
            self.folds,
            self.grid,
            pooling_mm=ensemble.pooling_mm,
            shrinkage=ensemble.pooling_shrinkage(len(self.train)),
        )

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)
