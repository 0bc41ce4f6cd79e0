"""Fitting of an anomaly model: features, scorers, cross-fitted null scores and calibrations.

Each control is scored by scorers fitted on the other folds. All folds share the encoder: training it again for each
fold would cost as much as everything else together. The calibration row of `benchmarks/method.py` measures the effect
on held-out controls.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from .calibration import FOLDS, Calibration, calibrate, folds_of, require_enough_participants, z_from_neg_log10_p
from .ensemble import Ensemble, combined_by_member
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing, smoothed

NULL = "null"
"""Name of the folder of null maps in the scratch folder."""
_FEWEST_AT_A_VOXEL = 2
"""Controls needed for a variance."""

Progress = Callable[[int, int], None]


def fit_ensemble(
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
) -> Ensemble:
    """Fit and calibrate all scorers of the settings on the training controls.

    Parameters
    ----------
    store : VolumeStore
    train : sequence of str
        Keys of the training controls.
    source : FeatureSource
    settings : ModelSettings
    scratch : Path
        Folder for the controls' features and for their null maps, ``null/<key>.npy`` (P,): the combined z-map of each
        control from scorers fitted without it. Not part of the model.
    seed : int
    participants : sequence of SubjectRecord
        Records of the training controls; required if the settings name covariates.
    jobs : int, optional
        Number of threads; one per core by default.
    progress : callable, optional
        Called with (steps done, total steps).

    Returns
    -------
    Ensemble

    Raises
    ------
    UserError
        Too few controls, features that cannot be fitted, or a covariate that does not vary.
    """
    require_enough_participants(train)
    by_key = {participant.key: participant for participant in participants}
    controls = [by_key[key] for key in train] if settings.ensemble.covariates else []
    fit = _Fit(store, tuple(train), controls, source, settings, scratch, seed, jobs, progress)
    return fit.combine([fit.calibrated_scorer(name) for name in fit.specs])


@dataclass(frozen=True, eq=False)
class _TrainingSet:
    """Controls to fit on, and the confounds learnt on them.

    Attributes
    ----------
    controls : ndarray of int
        Indices of the controls.
    confounds : Confounds
    values : ndarray, (S, k)
        Confounds of all controls.
    """

    controls: np.ndarray
    confounds: Confounds
    values: np.ndarray


class _Fit:
    """State of one fit."""

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
        self.mask, self.seed, self.jobs, self.progress = store.grid, seed, jobs, progress
        self.folds = folds_of([participant_of_key(key) for key in train], FOLDS, seed)
        self.specs = source.specs(settings.ensemble.scorers)
        reach_vox = max(source.reach_vox(spec, self.mask) for spec in self.specs.values())
        brains = (self.mask.transform(np.asarray(store.inside[row])) for row in store.index(train))
        self.inside = np.stack([away_from_truncation(brain, self.mask, reach_vox) for brain in brains])
        self.features: dict[str, Features] = {}
        self.covariates = Covariates.learn(settings.ensemble.covariates, controls)
        all_controls = np.arange(len(train))
        subsets = [*(np.setdiff1d(all_controls, fold) for fold in self.folds), all_controls]
        # Features outside a control's brain are missing, except where too few controls would be left to fit on.
        fewest = np.min([self.inside[subset].sum(axis=0) for subset in subsets], axis=0)
        self.available = self.inside | (fewest < _FEWEST_AT_A_VOXEL)
        values = np.array([self.covariates.values(participant) for participant in controls]).reshape(len(train), -1)
        *self.without_fold, self.complete = self.training_sets(subsets, values)
        feature_keys = {spec.feature_key for spec in self.specs.values()}
        self.steps, self.done = len(feature_keys) * len(train) + len(self.specs) * (len(self.folds) + 1), 0

    def training_sets(self, subsets: Sequence[np.ndarray], covariates: np.ndarray) -> list[_TrainingSet]:
        """Learn the confounds on each subset of the controls; `covariates` (S, k) are those of all controls."""
        participants = [len({participant_of_key(self.train[index]) for index in subset}) for subset in subsets]
        size = affordable(self.settings.ensemble.brain_components, min(participants))
        if size == 0:
            return [_TrainingSet(subset, Confounds(self.covariates), covariates) for subset in subsets]
        voxels, training_sets = self.source.features(WHOLE_BRAIN, self.mask), []
        brains = [
            sampled(voxels.compute(channels), inside)
            for channels, inside in zip(self.channels(), self.inside, strict=True)
        ]
        for subset in subsets:
            brain_components = BrainComponents.learn(voxels, np.stack([brains[index] for index in subset]), size)
            weights = np.stack([brain_components.weights(brain) for brain in brains])
            confounds = Confounds(self.covariates, brain_components)
            training_sets.append(_TrainingSet(subset, confounds, np.concatenate([covariates, weights], axis=1)))
        return training_sets

    def calibrated_scorer(self, name: str) -> CalibratedScorer:
        """Fit and calibrate one scorer; write -log10 p of its null to the folder `null/<name>`."""
        spec = self.specs[name]
        key = spec.feature_key
        if key not in self.features:
            self.features[key] = self.stored_features(spec)
        calibration, null = self.calibrate(self.cross_fitted_scores(spec))
        sigma_mm, smoothing = self.settings.ensemble.smoothing_mm, None
        if sigma_mm > 0:
            for row, brain in zip(null, self.inside, strict=True):
                row[:] = smoothed(row, brain, self.mask, sigma_mm)
            smoothed_calibration, null = self.calibrate(null)
            smoothing = Smoothing(self.mask, sigma_mm, smoothed_calibration)
        self.write_null(self.scratch / NULL / name, null)
        scorer, regression = self.fit_scorer(spec, self.complete)
        return CalibratedScorer(name, self.features[key], scorer, calibration, smoothing, spec.member, regression)

    def combine(self, scorers: Sequence[CalibratedScorer]) -> Ensemble:
        """Calibrate the combination of the scorers; write its null z-maps to the folder `null`."""
        p_norm = self.settings.ensemble.p_norm
        stores = [LatentStore.open(self.scratch / NULL / scorer.name, self.train, self.mask) for scorer in scorers]
        members = [scorer.member for scorer in scorers]
        values = np.empty(self.inside.shape, np.float32)
        for row, key, brain in zip(values, self.train, self.inside, strict=True):
            neg_log10_ps = [store.subject(key)[:, 0] for store in stores]
            row[:] = combined_by_member(neg_log10_ps, members, brain, p_norm).mean(axis=0)
        calibration, null = self.calibrate(values)
        z = (np.where(brain, z_from_neg_log10_p(row), 0) for row, brain in zip(null, self.inside, strict=True))
        self.write_null(self.scratch / NULL, z)
        return Ensemble(self.mask, tuple(scorers), calibration, p_norm, self.complete.confounds)

    def write_null(self, folder: Path, null: Iterable[np.ndarray]) -> None:
        """Write the null values (P,) of each control to a file."""
        store = LatentStore.create(folder, self.mask, 1)
        for key, values in zip(self.train, null, strict=True):
            store.write(key, values[:, None])

    def stored_features(self, spec: ScorerSpec) -> Features:
        """Compute and write the features of every control; return the feature extractor."""
        if spec.features == "patches":
            controls = zip(self.channels(), self.inside, strict=True)
            features: Features = PatchFeatures.learn(controls, self.mask, self.source.rows(spec), seed=self.seed)
        else:
            features = self.source.features(spec, self.mask)
        store = LatentStore.create(self.scratch / spec.feature_key, self.mask, features.size)
        for key, channels, available in zip(self.train, self.channels(), self.available, strict=True):
            store.write(key, features.compute(channels), available=available)
            self.step()
        return features

    def cross_fitted_scores(self, spec: ScorerSpec) -> np.ndarray:
        """Scores (S, P) of each control from a scorer fitted without its fold; 0 outside the control's brain."""
        null = np.empty(self.inside.shape, np.float32)
        latents = self.latents(spec, self.train)
        for fold, training_set in zip(self.folds, self.without_fold, strict=True):
            scorer, regression = self.fit_scorer(spec, training_set)
            for index in fold:
                features = latents.subject(self.train[index])
                if regression is not None:
                    features = regression.residualise(features, training_set.values[index])
                scores = scorer.score(features, jobs=self.jobs)
                null[index] = np.where(self.inside[index], scores, 0)
            del scorer, regression  # Free memory before the next fold.
        return null

    def fit_scorer(self, spec: ScorerSpec, training_set: _TrainingSet) -> tuple[Scorer, ConfoundRegression | None]:
        """Fit the confound regression, then the scorer on the residuals."""
        controls, settings = training_set.controls, self.settings.detector
        latents = features = self.latents(spec, [self.train[index] for index in controls])
        regression = None
        if training_set.confounds.size:
            values = training_set.values[controls]
            regression = ConfoundRegression.fit(latents, values, self.mask)
            features = ResidualisedLatents(latents, regression, values)
        if spec.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.fit(features, self.mask, settings, jobs=self.jobs)
        else:
            scorer = Mahalanobis.fit(features, self.mask, settings, spec.direction)
        self.step()
        return scorer, regression

    def channels(self) -> Iterator[np.ndarray]:
        """Yield the channels (C, X, Y, Z) float32 of each control."""
        for row in self.store.index(self.train):
            yield self.store.volumes[row].astype(np.float32)
            self.store.release_pages()

    def latents(self, spec: ScorerSpec, keys: Sequence[str]) -> LatentStore:
        """Open the stored features of some controls."""
        return LatentStore.open(self.scratch / spec.feature_key, keys, self.mask)

    def calibrate(self, null: np.ndarray) -> tuple[Calibration, np.ndarray]:
        """Fit a calibration to null scores (S, P)."""
        return calibrate(null, self.inside, self.folds, self.mask)

    def step(self) -> None:
        """Report one more step as done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)
