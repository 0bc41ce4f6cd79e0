"""Fitting of an anomaly model: features, scorers, cross-validated null scores and calibrations.

Each control is scored by scorers fitted on the other folds. All folds share the encoder: training it again for each
fold would cost as much as everything else together. The calibration row of `benchmarks/method.py` measures the effect
on held-out controls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ...data_manifests.cohort.subject import SubjectRecord, count_participants, participant_of_key
from ...data_manifests.errors import UserError
from ...preprocessing.patches.volume_store import VolumeStore
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.brain_components import BrainComponents, affordable, sampled
from ..confounds.confounds import WHOLE_BRAIN, Confounds
from ..confounds.covariates import Covariates
from ..confounds.regression import ConfoundRegression, residualised
from ..features.extractors import Features, PatchFeatures
from ..features.feature_store import LatentStore, ReadFeatures
from ..features.source import FeatureSource, ScorerSpec
from ..features.truncated_fov import away_from_truncation
from ..learned.edited_controls import EditedControls
from ..learned.fit import LearnedFit
from ..learned.scorer import LearnedScorer
from ..settings import FEWEST_TO_LEARN_FROM, FOLDS, ModelSettings
from .calibrated_scorer import CalibratedScorer
from .calibration import Calibration, calibrate, folds_of, require_enough_participants, z_from_neg_log10_p
from .ensemble import Ensemble, combined_by_member
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing, smoothed
from .surroundings import Surroundings

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
    named = [by_key[key] for key in train] if settings.ensemble.covariates else []
    specs = _affordable(source.specs(settings.ensemble.scorers), train)
    controls = _StoredControls(store, tuple(train), _brains(store, train, specs, source), source, settings, scratch)
    folds = folds_of([participant_of_key(key) for key in train], FOLDS, seed)
    everyone = np.arange(len(train))
    subsets = [*(np.setdiff1d(everyone, fold) for fold in folds), everyone]
    confounds, values = controls.learn_confounds(subsets, named)
    # Features outside a control's brain are missing, except where too few controls would be left to fit on.
    few = np.min([controls.inside[subset].sum(axis=0) for subset in subsets], axis=0) < _FEWEST_AT_A_VOXEL
    feature_keys = {spec.feature_key for spec in specs.values()}
    edited_controls = EditedControls(store, tuple(train), source.channels, settings.learned.families, seed)
    n_fits = sum(
        len(folds) + (settings.learned.copies * len(train) if spec.scorer == "learned" else 1)
        for spec in specs.values()
    )
    step = _counted(progress, len(feature_keys) * len(train) + n_fits)
    fit = CrossFit(store.grid, controls.inside, folds, values, settings, jobs, step, source.device, edited_controls)

    extractors: dict[str, Features] = {}
    scorers = []
    for name, spec in specs.items():
        key = spec.feature_key
        if key not in extractors:
            extractors[key] = controls.write_features(spec, few, seed, step)
        scorer, null = fit.calibrated_scorer(name, spec, extractors[key], controls.reader(key))
        controls.write_null(f"{NULL}/{name}", null)
        scorers.append(scorer)
        del null  # Free memory before the next scorer.
    nulls = [controls.reader(f"{NULL}/{scorer.name}") for scorer in scorers]
    calibration, null = fit.combine([scorer.member for scorer in scorers], nulls)
    surroundings = None
    if settings.ensemble.surroundings_mm > 0:
        surroundings, null = fit.compare_with_surroundings(null)
    z = (np.where(brain, z_from_neg_log10_p(row), 0) for row, brain in zip(null, controls.inside, strict=True))
    controls.write_null(NULL, z)
    return Ensemble(store.grid, tuple(scorers), calibration, settings.ensemble.p_norm, confounds, surroundings)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validation of scorers on the features of controls, which may be on disk or in memory.

    Attributes
    ----------
    mask : VoxelMask
    inside : ndarray of bool, (S, P)
        Brain mask of each control, without voxels near a truncated field of view.
    folds : sequence of ndarray of int
        Indices of the controls of each fold.
    confounds : sequence of ndarray, (S, k)
        Confounds of all controls, as learnt without each fold, and last on all controls.
    settings : ModelSettings
    jobs : int or None
        Number of threads; one per core if None.
    step : callable
        Called after each fit.
    device : str or torch.device
        Device on which networks are trained.
    edited_controls : EditedControls or None
        What the learned scorer learns from; None if there is no such scorer.
    """

    mask: VoxelMask
    inside: np.ndarray
    folds: Sequence[np.ndarray]
    confounds: Sequence[np.ndarray]
    settings: ModelSettings
    jobs: int | None = None
    step: Callable[[], None] = lambda: None
    device: torch.device | str = "cpu"
    edited_controls: EditedControls | None = None

    def calibrated_scorer(
        self, name: str, spec: ScorerSpec, extractor: Features, features: ReadFeatures
    ) -> tuple[CalibratedScorer, np.ndarray]:
        """Fit and calibrate one scorer; also return -log10 p of its null, (S, P)."""
        if spec.scorer == "learned":
            scorer, regression, scores = self.learned(features)
        else:
            scores = self.cross_fitted_scores(spec, features)
            scorer, regression = self.fit_scorer(spec, features, np.arange(len(self.inside)), self.confounds[-1])
        calibration, null = self.calibrate(scores)
        sigma_mm, smoothing = self.settings.ensemble.smoothing_mm, None
        if sigma_mm > 0 and spec.is_smoothed:
            for row, brain in zip(null, self.inside, strict=True):
                row[:] = smoothed(row, brain, self.mask, sigma_mm)
            smoothed_calibration, null = self.calibrate(null)
            smoothing = Smoothing(self.mask, sigma_mm, smoothed_calibration)
        return CalibratedScorer(name, extractor, scorer, calibration, smoothing, spec.member, regression), null

    def cross_fitted_scores(self, spec: ScorerSpec, features: ReadFeatures) -> np.ndarray:
        """Scores (S, P) of each control from a scorer fitted without its fold; 0 outside the control's brain."""
        null = np.empty(self.inside.shape, np.float32)
        for fold, confounds in zip(self.folds, self.confounds[:-1], strict=True):
            others = np.setdiff1d(np.arange(len(self.inside)), fold)
            scorer, regression = self.fit_scorer(spec, features, others, confounds)
            for index in fold:
                own = features([index])[:, :][0]
                if regression is not None:
                    own = regression.residualise(own, confounds[index])
                brain = self.inside[index]
                null[index] = np.where(brain, scorer.score(own, inside=brain, jobs=self.jobs), 0)
            del scorer, regression  # Free memory before the next fold.
        return null

    def learned(self, features: ReadFeatures) -> tuple[LearnedScorer, ConfoundRegression | None, np.ndarray]:
        """Train the learned scorer; also return the regression for its features, and its null scores (S, P)."""
        if self.edited_controls is None:
            raise ValueError("the learned scorer needs edited_controls")
        fit = LearnedFit.start(self.mask, features, self.edited_controls, self.inside, self.folds, self.confounds)
        settings = self.settings.learned
        samples = fit.samples(settings.copies, self.jobs, self.step)
        networks = fit.networks(samples, settings.steps, self.device, self.jobs, self.step)
        return fit.scorer(networks), fit.references[-1].regression, fit.null(networks, self.jobs)

    def fit_scorer(
        self, spec: ScorerSpec, features: ReadFeatures, subset: np.ndarray, confounds: np.ndarray
    ) -> tuple[Scorer, ConfoundRegression | None]:
        """Fit the confound regression on a subset of the controls, then the scorer on the residuals."""
        residuals, regression = residualised(features(subset), confounds[subset], self.mask)
        if spec.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.fit(residuals, self.mask, self.settings.detector, jobs=self.jobs)
        else:
            scorer = Mahalanobis.fit(residuals, self.mask, self.settings.detector, spec.direction)
        self.step()
        return scorer, regression

    def combine(self, members: Sequence[int | None], nulls: Sequence[ReadFeatures]) -> tuple[Calibration, np.ndarray]:
        """Calibrate the combination of scorers from their nulls (S, P, 1); also return -log10 p of the null, (S, P)."""
        values = np.empty(self.inside.shape, np.float32)
        for index, brain in enumerate(self.inside):
            neg_log10_ps = [null([index])[:, :][0, :, 0] for null in nulls]
            by_member = combined_by_member(neg_log10_ps, members, brain, self.settings.ensemble.p_norm)
            values[index] = by_member.mean(axis=0)
        return self.calibrate(values)

    def compare_with_surroundings(self, null: np.ndarray) -> tuple[Surroundings, np.ndarray]:
        """Compare the -log10 p of the null (S, P) with their surroundings; also return the result, (S, P)."""
        sigma_mm = self.settings.ensemble.surroundings_mm
        return Surroundings.fit(null, self.inside, self.mask, sigma_mm, self.calibrate)

    def calibrate(self, null: np.ndarray) -> tuple[Calibration, np.ndarray]:
        """Fit a calibration to null scores (S, P)."""
        return calibrate(null, self.inside, self.folds, self.mask)


@dataclass(frozen=True, eq=False)
class _StoredControls:
    """Training controls, with their volumes, features and null maps on disk.

    Attributes
    ----------
    store : VolumeStore
    keys : tuple of str
    inside : ndarray of bool, (S, P)
        Brain mask of each control, without voxels near a truncated field of view.
    source : FeatureSource
    settings : ModelSettings
    scratch : Path
        See `fit_ensemble`; the folders below are in it.
    """

    store: VolumeStore
    keys: tuple[str, ...]
    inside: np.ndarray
    source: FeatureSource
    settings: ModelSettings
    scratch: Path

    def channels(self) -> Iterator[np.ndarray]:
        """Yield the channels (C, X, Y, Z) float32 of each control."""
        for row in self.store.index(self.keys):
            yield self.store.volumes[row].astype(np.float32)
            self.store.release_pages()

    def reader(self, folder: str) -> ReadFeatures:
        """Return a function that opens the features in a folder."""
        stored = LatentStore.open(self.scratch / folder, self.keys, self.store.grid)
        return lambda controls: replace(stored, keys=tuple(self.keys[index] for index in controls))

    def write_null(self, folder: str, null: Iterable[np.ndarray]) -> None:
        """Write the null values (P,) of each control to a folder."""
        store = LatentStore.create(self.scratch / folder, self.store.grid, 1)
        for key, values in zip(self.keys, null, strict=True):
            store.write(key, values[:, None])

    def write_features(self, spec: ScorerSpec, few: np.ndarray, seed: int, step: Callable[[], None]) -> Features:
        """Compute and write the features of every control, inside its brain and at `few` (P,); return the extractor."""
        if spec.features == "patches":
            controls = zip(self.channels(), self.inside, strict=True)
            features: Features = PatchFeatures.learn(controls, self.store.grid, self.source.rows(spec), seed=seed)
        else:
            features = self.source.features(spec, self.store.grid)
        store = LatentStore.create(self.scratch / spec.feature_key, self.store.grid, features.size)
        for key, channels, brain in zip(self.keys, self.channels(), self.inside, strict=True):
            store.write(key, features.compute(channels), available=brain | few)
            step()
        return features

    def learn_confounds(
        self, subsets: Sequence[np.ndarray], participants: Sequence[SubjectRecord]
    ) -> tuple[Confounds, list[np.ndarray]]:
        """Learn the confounds on each subset of the controls.

        Returns the confounds learnt on the last subset, and for each subset the values (S, k) of all controls.
        """
        settings = self.settings.ensemble
        covariates = Covariates.learn(settings.covariates, participants)
        values = np.array([covariates.values(participant) for participant in participants]).reshape(len(self.keys), -1)
        n_participants = [count_participants(self.keys[index] for index in subset) for subset in subsets]
        size = affordable(settings.brain_components, min(n_participants))
        if size == 0:
            return Confounds(covariates), [values] * len(subsets)
        voxels = self.source.features(WHOLE_BRAIN, self.store.grid)
        brains = [
            sampled(voxels.compute(channels), brain)
            for channels, brain in zip(self.channels(), self.inside, strict=True)
        ]
        learnt = [BrainComponents.learn(voxels, np.stack([brains[i] for i in subset]), size) for subset in subsets]
        weights = [np.stack([components.weights(brain) for brain in brains]) for components in learnt]
        return Confounds(covariates, learnt[-1]), [np.concatenate([values, own], axis=1) for own in weights]


def _brains(
    store: VolumeStore, keys: Sequence[str], specs: Mapping[str, ScorerSpec], source: FeatureSource
) -> np.ndarray:
    """Brain masks of the controls, (S, P) bool, without voxels near a truncated field of view."""
    reach_vox = max(source.reach_vox(spec, store.grid) for spec in specs.values())
    brains = (store.grid.transform(np.asarray(store.inside[row])) for row in store.index(keys))
    return np.stack([away_from_truncation(brain, store.grid, reach_vox) for brain in brains])


def _affordable(specs: Mapping[str, ScorerSpec], train: Sequence[str]) -> dict[str, ScorerSpec]:
    """Leave the learned scorer out if there are too few controls to learn from.

    Raises
    ------
    UserError
        No scorer is left.
    """
    participants = count_participants(train)
    enough = participants >= FEWEST_TO_LEARN_FROM
    left = {name: spec for name, spec in specs.items() if enough or spec.scorer != "learned"}
    if not left:
        raise UserError(
            f"{participants} training controls, expected at least {FEWEST_TO_LEARN_FROM} for the scorer `learned`. Add "
            "healthy scans of other participants, or other scorers to models.ensemble.scorers."
        )
    return left


def _counted(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return a function that reports one more step as done."""
    done = count(1)
    return lambda: progress(next(done), total) if progress is not None else None
