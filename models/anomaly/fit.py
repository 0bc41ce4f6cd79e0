"""From controls to a fused model: features, scorers, their null by cross-fitting, calibrations.

Every control is scored by scorers fitted on the others' folds. The encoder is shared by all folds: to train it again
for each would cost as much as everything else together, and the controls it has not seen show what that leaves
(the calibration row of `benchmarks/method.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord, person_of_key
from ...preprocessing.patches.volume_store import PatchStore
from ..confounds.brain_components import Patterns, affordable, sampled
from ..confounds.confounds import WHOLE_BRAIN, Nuisances
from ..confounds.covariates import Covariates
from ..confounds.regression import AdjustedLatents, Adjustment
from ..features.extractors import Features, PatchFeatures
from ..features.feature_store import LatentStore
from ..features.source import Plan, Sight
from ..features.truncated_fov import clear_of_cuts
from ..settings import ModelSettings
from .calibrated_scorer import Reader
from .calibration import Calibration, calibrate, folds_of, require_enough_people, z_of_surprise
from .ensemble import Fusion, fused_by_member
from .scorers import Mahalanobis, OneClassSvms, Scorer
from .smoothing import Smoothing, smoothed

NULL = "null"
"""Folder of the null maps among the controls' features."""
_FEWEST_AT_A_PLACE = 2
"""As many controls a variance needs."""

Progress = Callable[[int, int], None]


def fit_fusion(
    store: PatchStore,
    train: Sequence[str],
    sight: Sight,
    settings: ModelSettings,
    scratch: Path,
    *,
    seed: int,
    people: Sequence[SubjectRecord] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Fusion:
    """Fit every reader of the settings on the training controls, and calibrate them.

    Parameters
    ----------
    store : PatchStore
    train : sequence of str
        Keys of the training controls.
    sight : Sight
    settings : ModelSettings
    scratch : Path
        Folder for the controls' features and their null: the fused z-map of each, read by readers that have not seen
        it, as ``null/<key>.npy`` (P,). It stays behind when the model travels.
    seed : int
    people : sequence of SubjectRecord
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
    require_enough_people(train)
    by_key = {person.key: person for person in people}
    controls = [by_key[key] for key in train] if settings.fusion.covariates else []
    fit = _Fit(store, tuple(train), controls, sight, settings, scratch, seed, jobs, progress)
    return fit.fused([fit.reader(name) for name in fit.plans])


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the controls, and what they tell of everybody.

    Attributes
    ----------
    controls : ndarray of int
    nuisances : Nuisances
    numbers : ndarray, (S, k)
        The nuisances of all controls.
    """

    controls: np.ndarray
    nuisances: Nuisances
    numbers: np.ndarray


class _Fit:
    def __init__(
        self,
        store: PatchStore,
        train: tuple[str, ...],
        controls: Sequence[SubjectRecord],
        sight: Sight,
        settings: ModelSettings,
        scratch: Path,
        seed: int,
        jobs: int | None,
        progress: Progress | None,
    ):
        self.store, self.train, self.sight, self.settings, self.scratch = store, train, sight, settings, scratch
        self.grid, self.seed, self.jobs, self.progress = store.grid, seed, jobs, progress
        self.folds = folds_of([person_of_key(key) for key in train], settings.fusion.folds, seed)
        self.plans = sight.plans(settings.fusion.readers)
        reach_vox = max(sight.reach_vox(plan, self.grid) for plan in self.plans.values())
        brains = (self.grid.gather(np.asarray(store.inside[row])) for row in store.index(train))
        self.inside = np.stack([clear_of_cuts(brain, self.grid, reach_vox) for brain in brains])
        self.features: dict[str, Features] = {}
        self.covariates = Covariates.learn(settings.fusion.covariates, controls)
        everybody = np.arange(len(train))
        parts = [*(np.setdiff1d(everybody, fold) for fold in self.folds), everybody]
        # Where a control has no brain it counts for nothing, unless too few would be left to tell what is normal.
        least = np.min([self.inside[part].sum(axis=0) for part in parts], axis=0)
        self.counts = self.inside | (least < _FEWEST_AT_A_PLACE)
        told = np.array([self.covariates.of(person) for person in controls]).reshape(len(train), -1)
        *self.apart, self.whole = self.parts(parts, told)
        kinds = {plan.looks_at for plan in self.plans.values()}
        self.steps, self.done = len(kinds) * len(train) + len(self.plans) * (len(self.folds) + 1), 0

    def parts(self, parts: Sequence[np.ndarray], told: np.ndarray) -> list[_Part]:
        """What features are adjusted for, as each part of the controls tells it; `told`: their covariates (S, k)."""
        people = [len({person_of_key(self.train[number]) for number in part}) for part in parts]
        size = affordable(self.settings.fusion.patterns, min(people))
        if size == 0:
            return [_Part(part, Nuisances(self.covariates), told) for part in parts]
        voxels, found = self.sight.features(WHOLE_BRAIN, self.grid), []
        brains = [sampled(voxels.of(seen), inside) for seen, inside in zip(self.channels(), self.inside, strict=True)]
        for part in parts:
            patterns = Patterns.learn(voxels, np.stack([brains[number] for number in part]), size)
            weights = np.stack([patterns.weights(brain) for brain in brains])
            found.append(_Part(part, Nuisances(self.covariates, patterns), np.concatenate([told, weights], axis=1)))
        return found

    def reader(self, name: str) -> Reader:
        """Fit and calibrate one reader; its null surprises go to the folder `null/<name>`."""
        plan = self.plans[name]
        kind = plan.looks_at
        if kind not in self.features:
            self.features[kind] = self.stored_features(plan)
        calibration, null = self.calibrated(self.cross_fitted(plan))
        sigma_mm, smoothing = self.settings.fusion.smoothing_mm, None
        if sigma_mm > 0:
            for row, brain in zip(null, self.inside, strict=True):
                row[:] = smoothed(row, brain, self.grid, sigma_mm)
            of_smoothed, null = self.calibrated(null)
            smoothing = Smoothing(self.grid, sigma_mm, of_smoothed)
        surprises = LatentStore.create(self.scratch / NULL / name, self.grid, 1)
        for key, surprise in zip(self.train, null, strict=True):
            surprises.write(key, surprise[:, None])
        scorer, adjustment = self.scorer(plan, self.whole)
        return Reader(name, self.features[kind], scorer, calibration, smoothing, plan.member, adjustment)

    def fused(self, readers: Sequence[Reader]) -> Fusion:
        """Calibrate the readers' combination; its null z-maps go to the folder `null`."""
        power = self.settings.fusion.power
        stores = [LatentStore.open(self.scratch / NULL / reader.name, self.train, self.grid) for reader in readers]
        members = [reader.member for reader in readers]
        total = np.empty(self.inside.shape, np.float32)
        for row, key, brain in zip(total, self.train, self.inside, strict=True):
            surprises = [store.subject(key)[:, 0] for store in stores]
            row[:] = fused_by_member(surprises, members, brain, power).mean(axis=0)
        calibration, null = self.calibrated(total)
        maps = LatentStore.create(self.scratch / NULL, self.grid, 1)
        for key, surprise, brain in zip(self.train, null, self.inside, strict=True):
            maps.write(key, np.where(brain, z_of_surprise(surprise), 0)[:, None])
        return Fusion(self.grid, tuple(readers), calibration, power, self.whole.nuisances)

    def stored_features(self, plan: Plan) -> Features:
        """Write the features of every control, and say how they are made."""
        if plan.features == "patches":
            size = self.settings.fusion.patch_components
            controls = zip(self.channels(), self.inside, strict=True)
            features: Features = PatchFeatures.learn(
                controls, self.grid, self.sight.rows(plan), size=size, seed=self.seed
            )
        else:
            features = self.sight.features(plan, self.grid)
        latents = LatentStore.create(self.scratch / plan.looks_at, self.grid, features.size)
        for key, seen, counts in zip(self.train, self.channels(), self.counts, strict=True):
            latents.write(key, features.of(seen), there=counts)
            self.step()
        return features

    def cross_fitted(self, plan: Plan) -> np.ndarray:
        """Scores (S, P) of every control by a scorer that was fitted without its fold; 0 where it has no brain."""
        null = np.empty(self.inside.shape, np.float32)
        seen = self.latents(plan, self.train)
        for fold, part in zip(self.folds, self.apart, strict=True):
            scorer, adjustment = self.scorer(plan, part)
            for number in fold:
                features = seen.subject(self.train[number])
                if adjustment is not None:
                    features = adjustment.apply(features, part.numbers[number])
                scores = scorer.score(features, jobs=self.jobs)
                null[number] = np.where(self.inside[number], scores, 0)
            del scorer, adjustment  # The next ones need the room.
        return null

    def scorer(self, plan: Plan, part: _Part) -> tuple[Scorer, Adjustment | None]:
        """Fit on some of the controls: what their nuisances explain, then the scorer on the rest."""
        seen, detector = self.latents(plan, [self.train[number] for number in part.controls]), self.settings.detector
        adjustment, latents = None, seen
        if part.nuisances.size:
            numbers = part.numbers[part.controls]
            adjustment = Adjustment.fit(seen, numbers, self.grid)
            latents = AdjustedLatents(seen, adjustment, numbers)
        if plan.scorer == "ocsvm":
            scorer: Scorer = OneClassSvms.fit(latents, self.grid, detector, jobs=self.jobs)
        else:
            scorer = Mahalanobis.fit(latents, self.grid, detector, plan.direction)
        self.step()
        return scorer, adjustment

    def channels(self) -> Iterator[np.ndarray]:
        """Channels (C, X, Y, Z) float32 of one control after the other."""
        for row in self.store.index(self.train):
            yield self.store.volumes[row].astype(np.float32)
            self.store.forget_pages()

    def latents(self, plan: Plan, keys: Sequence[str]) -> LatentStore:
        return LatentStore.open(self.scratch / plan.looks_at, keys, self.grid)

    def calibrated(self, null: np.ndarray) -> tuple[Calibration, np.ndarray]:
        fusion = self.settings.fusion
        return calibrate(
            null,
            self.inside,
            self.folds,
            self.grid,
            pooling_mm=fusion.pooling_mm,
            shrinkage=fusion.pooling_shrinkage(len(self.train)),
        )

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)
