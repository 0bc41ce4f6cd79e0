"""Cross-fit in one pass, against fits of each subset that are written out in float64."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from sklearn.svm import OneClassSVM
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.memory_map import temporary_array
from voxout.models.anomaly import calibration, scorers
from voxout.models.anomaly import one_pass as module
from voxout.models.anomaly.calibration import calibrate
from voxout.models.anomaly.one_pass import OnePass
from voxout.models.anomaly.scorers import DistanceParts, SvmParts
from voxout.models.features import moments
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.packed_masks import PackedMasks
from voxout.models.features.subsets import Subsets
from voxout.models.settings import DetectorSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

from ..features.slow_whitening import slow_slopes, slow_whitened

BRAIN = np.random.default_rng(0).random((6, 5, 4)) < 0.7
MASK = VoxelMask(Grid(BRAIN.shape, np.eye(4)), BRAIN)
FOLDS = [np.arange(first, 18, 3) for first in range(3)]
EVERYONE = np.arange(18)
TRAINING_SETS = [*(np.setdiff1d(EVERYONE, fold) for fold in FOLDS), EVERYONE]
NU, GAMMA = 0.31, 0.1  # with nu times the controls an integer, the offset is not unique


def controls(d=3):
    """Features of 18 controls, some of them missing at some voxels, and the confounds as learnt on each subset."""
    random = np.random.default_rng(1)
    confounds = [random.normal(0.5, 1.0, (18, 2)) for _ in range(4)]
    features = random.normal(size=(18, MASK.size, d)) @ random.normal(size=(d, d)) + random.normal(size=(MASK.size, d))
    features += (confounds[3] @ random.normal(size=(2, d)))[:, None]
    absent = random.random(features.shape[:2]) < 0.2
    absent[:9] = False
    features[absent] = np.nan
    return features.astype(np.float32), confounds


def slow_white(features, confounds, fitted_on):
    """White residuals of all controls, as fitted on some of them."""
    slopes = slow_slopes(features[fitted_on], confounds[fitted_on], MASK).astype(np.float16).astype(np.float64)
    residuals = features - np.einsum("sk,kpd->spd", confounds, slopes)
    return slow_whitened(residuals, MASK, fitted_on)


def lengths(white, fitted_on):
    return np.linalg.norm(white, axis=2)


def minus_decision(white, fitted_on):
    """Scores of scikit-learn's one-class SVMs."""
    scores = np.full(white.shape[:2], np.nan)
    for voxel, own in enumerate(white.swapaxes(0, 1)):
        there = np.isfinite(own[:, 0])
        fitted = np.intersect1d(fitted_on, np.flatnonzero(there))
        svm = OneClassSVM(nu=NU, gamma=GAMMA, tol=1e-9).fit(own[fitted])
        scores[there, voxel] = -svm.decision_function(own[there])
    return scores


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("parts", "slow_scores"),
    [
        (DistanceParts, lengths),
        (partial(SvmParts, DetectorSettings(nu=NU, gamma=GAMMA, score="decision"), 3), minus_decision),
    ],
)
def test_scores_and_scorer_are_those_of_a_fit_on_each_subset(monkeypatch, parts, slow_scores, jobs):
    monkeypatch.setattr(scorers, "_PRECISION", "float32")
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", 700)
    features, confounds = controls()
    found, calls = np.full(features.shape[:2], np.nan, np.float32), []
    scorer, regression = OnePass(MASK, Subsets(FOLDS, confounds), jobs).fit(
        lambda indices: features[indices], parts(), found, lambda *call: calls.append(call)
    )
    expected = [slow_scores(slow_white(features, c, s), s) for c, s in zip(confounds, TRAINING_SETS, strict=True)]
    for scores, fold in zip(expected, FOLDS, strict=False):
        # Inverse factors are stored with 11 bits.
        np.testing.assert_allclose(found[fold], np.nan_to_num(scores[fold]), rtol=3e-3, atol=3e-3)
    unscored = np.isnan(features[..., 0])
    assert (found[unscored] == 0).all() and found[~unscored].all()
    own = scorer.score(regression.residualise(features[4], confounds[3][4]), inside=None)
    np.testing.assert_allclose(own, expected[3][4], rtol=3e-3, atol=3e-3)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls}) and calls[-1] == (MASK.size, MASK.size)


def test_mirrored_copies_count_in_moments_and_scores_but_not_in_detectors(monkeypatch):
    monkeypatch.setattr(scorers, "_PRECISION", "float32")
    features, confounds = controls()
    copies = EVERYONE % 2 == 1
    found = np.full(features.shape[:2], np.nan, np.float32)
    parts = SvmParts(DetectorSettings(nu=NU, gamma=GAMMA, score="decision"), 3)
    one_pass = OnePass(MASK, Subsets(FOLDS, confounds, copies=copies), 1)
    scorer, regression = one_pass.fit(lambda indices: features[indices], parts, found)
    for own, subset, fold in zip(confounds, TRAINING_SETS, FOLDS, strict=False):
        expected = minus_decision(slow_white(features, own, subset), subset[~copies[subset]])
        np.testing.assert_allclose(found[fold], np.nan_to_num(expected[fold]), rtol=3e-3, atol=3e-3)
    expected = minus_decision(slow_white(features, confounds[3], EVERYONE), EVERYONE[~copies])
    score = scorer.score(regression.residualise(features[4], confounds[3][4]))
    np.testing.assert_allclose(score, expected[4], rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize(
    "parts",
    [DistanceParts, partial(SvmParts, DetectorSettings(nu=NU, gamma=GAMMA, score="distance"), 3)],
)
def test_integer_weights_are_repeated_controls(monkeypatch, parts):
    """Controls that occur several times are in one fold."""
    monkeypatch.setattr(scorers, "_PRECISION", "float32")
    features, confounds = controls()
    weights = np.random.default_rng(2).integers(1, 4, 18).astype(float)
    weights[7] = 0
    times = np.repeat(EVERYONE, weights.astype(int))
    folds = [np.flatnonzero(np.isin(times, fold)) for fold in FOLDS]
    found = np.empty(features.shape[:2], np.float32)
    weighted = OnePass(MASK, Subsets(FOLDS, confounds, weights), 1)
    scorer, regression = weighted.fit(lambda indices: features[indices], parts(), found)
    expected = np.empty((len(times), MASK.size), np.float32)
    repeated = OnePass(MASK, Subsets(folds, [values[times] for values in confounds]), 1)
    again, regression_again = repeated.fit(lambda indices: features[times[indices]], parts(), expected)
    np.testing.assert_allclose(found[times], expected, rtol=3e-3, atol=3e-3)
    np.testing.assert_allclose(regression.slopes, regression_again.slopes, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(scorer.score(features[4]), again.score(features[4]), rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("scaling", ["raw", "standardised"])
def test_the_scaling_of_the_latents_is_that_of_the_settings(monkeypatch, scaling):
    monkeypatch.setattr(scorers, "_PRECISION", "float32")
    features, _ = controls()
    features = np.nan_to_num(features)
    nothing = Subsets.everyone(np.empty((18, 0)))
    settings = DetectorSettings(nu=NU, gamma=GAMMA, score="decision", latent_scaling=scaling)
    scorer, regression = OnePass(MASK, nothing, 1).fit(lambda indices: features[indices], SvmParts(settings, 3))
    assert regression is None and (scorer.whitening is None) == (scaling == "raw")
    white = features if scaling == "raw" else scorer.whitening.whiten(features)
    if scaling == "standardised":
        np.testing.assert_allclose(np.diagonal(scorer.whitening.factor(), axis1=1, axis2=2).min(), 1, atol=0.9)
        assert not np.triu(scorer.whitening.factor(), 1).any() and not np.tril(scorer.whitening.factor(), -1).any()
    np.testing.assert_allclose(scorer.score(features[4]), minus_decision(white, EVERYONE)[4], atol=1e-4)


def test_memory_does_not_grow_with_the_number_of_controls(tmp_path, monkeypatch):
    """Fit, null scores and calibration of stored features: six times the controls in hardly more memory."""
    for each in (module, moments):
        monkeypatch.setattr(each, "_BLOCK_NUMBERS", 8000)
    monkeypatch.setattr(calibration, "_VALUES_AT_ONCE", 8000)
    box = np.ones((20, 20, 20), bool)
    mask = VoxelMask(Grid(box.shape, np.diag([2.0, 2, 2, 1])), box)

    def peak_bytes(count):
        folder, random = tmp_path / str(count), np.random.default_rng(0)
        store = LatentStore.create(folder, mask, 1)
        keys = [f"sub-{number}" for number in range(count)]
        for key in keys:
            store.write(key, random.normal(size=(mask.size, 1)))
        inside = PackedMasks.pack((box.ravel() for _ in keys), mask.size)
        folds = [np.arange(first, count, 5) for first in range(5)]
        subsets = Subsets(folds, [np.empty((count, 0))] * 6)
        tracemalloc.start()
        null = temporary_array(folder, np.float32, inside.shape)
        OnePass(mask, subsets, 1).fit(
            lambda indices: LatentStore.open(folder, [keys[i] for i in indices], mask), DistanceParts(), null
        )
        calibrate(null, inside, folds, mask, out=null)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(10), peak_bytes(60)
    assert many - few < 50 * mask.size / 2  # half a byte per control and voxel; an array of scores has four
