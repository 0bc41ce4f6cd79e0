"""Fitting of an anomaly model: features, scorers, cross-validated null scores and calibrations.

Each control is scored by scorers fitted on the other folds. All folds share the encoder: training it again for each
fold would cost as much as everything else together. The calibration row of `benchmarks/method.py` measures the effect
on held-out controls.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord, count_participants, original_key, participant_of_key
from ...data_manifests.errors import UserError
from ...data_manifests.images.memory_map import rows_of
from ...preprocessing.patches.mirrored import are_copies, is_symmetric, with_copies
from ...preprocessing.patches.volume_store import VolumeStore
from ..edits.edited_controls import EditedControls
from ..features.extractors import Features
from ..features.packed_masks import Masks
from ..features.source import FeatureSource, ScorerSpec
from ..features.subsets import Subsets, training_sets
from ..settings import FEWEST_TO_LEARN_FROM, FOLDS, ModelSettings
from .calibration import folds_of, require_enough_participants, z_from_neg_log10_p
from .cross_fit import CrossFit
from .ensemble import Ensemble
from .stored_controls import NULL, StoredControls, brains_of

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
        Records of the training controls, for their ages; required if the settings name covariates.
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
    if settings.ensemble.mirrored_controls and is_symmetric(store.grid.grid):
        train = with_copies(train)
    named = [by_key[original_key(key)] for key in train] if settings.ensemble.covariates else []
    specs = _affordable(source.specs(settings.ensemble.scorers), train)
    controls = StoredControls(store, tuple(train), brains_of(store, train, specs, source), source, settings, scratch)
    participants_of_controls = [participant_of_key(key) for key in train]
    folds = folds_of(participants_of_controls, FOLDS, seed)
    confounds, values = controls.learn_confounds(training_sets(folds, len(train)), named)
    # Features outside a control's brain are missing, except where too few controls would be left to fit on.
    few = _fewest(controls.inside, folds) < _FEWEST_AT_A_VOXEL
    feature_keys = {spec.feature_key for spec in specs.values()}
    edited_controls = EditedControls(store, tuple(train), source.channels, settings.learned.families, seed)
    n_fits = sum(
        len(folds) + (settings.learned.copies * len(train) if spec.scorer == "learned" else 1)
        for spec in specs.values()
    )
    step = _counted(progress, len(feature_keys) * len(train) + n_fits)
    subsets = Subsets(folds, values, copies=are_copies(train))
    fit = CrossFit(
        store.grid,
        controls.inside,
        subsets,
        settings,
        jobs,
        step,
        source.device,
        edited_controls,
        scratch,
        np.unique(participants_of_controls, return_inverse=True)[1],
        seed,
    )

    extractors: dict[str, Features] = {}
    scorers = []
    for name, spec in specs.items():
        key = spec.feature_key
        if key not in extractors:
            extractors[key] = controls.write_features(spec, few, seed, step)
        scorer, null = fit.calibrated_scorer(name, spec, extractors[key], controls.reader(key))
        controls.write_null(f"{NULL}/{name}", rows_of(null))
        scorers.append(scorer)
        del null  # Free memory before the next scorer.
    nulls = [controls.reader(f"{NULL}/{scorer.name}") for scorer in scorers]
    calibration, null = fit.combine(scorers, nulls)
    surroundings = None
    if settings.ensemble.surroundings_mm > 0:
        surroundings = fit.compare_with_surroundings(null)
    records = [by_key.get(original_key(key)) for key in train]
    ages = fit.match_ages(null, [None if record is None else record.age for record in records])
    z = (np.where(brain, z_from_neg_log10_p(row), 0) for row, brain in zip(rows_of(null), controls.inside, strict=True))
    controls.write_null(NULL, z)
    return Ensemble(store.grid, tuple(scorers), calibration, settings.ensemble.p_norm, confounds, surroundings, ages)


def _fewest(inside: Masks, folds: Sequence[np.ndarray]) -> np.ndarray:
    """Smallest number of controls with brain at each voxel when a fold is left out, (P,)."""
    counts = np.stack([sum(inside[index].astype(np.int64) for index in fold) for fold in folds])
    return (counts.sum(axis=0) - counts).min(axis=0)


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
