"""Merged support vectors: the scores of the one-class SVMs within a hundredth of their spread, without latents."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.calibrated_scorer import CalibratedScorer
from voxout.models.anomaly.calibration import Calibration
from voxout.models.anomaly.merged import merge_support_vectors
from voxout.models.anomaly.score_change import score_change
from voxout.models.anomaly.scorers import OneClassSvms
from voxout.models.confounds.regression import ConfoundRegression
from voxout.models.settings import DetectorSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = VoxelMask(Grid((6, 7, 8), np.eye(4)), np.ones((6, 7, 8), bool))
CONTROLS, SIZE = 40, 6


def latents(count, seed, spread=1.0):
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(SIZE, SIZE))
    return (3 + spread * random.standard_t(8, size=(count, MASK.size, SIZE)) @ mixing).astype("f4")


def svms(**settings):
    return OneClassSvms.fit(latents(CONTROLS, 0), MASK, DetectorSettings(**settings), jobs=1)


def scores(scorer, values):
    return np.stack([scorer.score(value, jobs=1) for value in values])


@pytest.fixture(scope="module")
def full():
    return svms()


@pytest.fixture(scope="module")
def merged(full):
    return merge_support_vectors(full)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.5])
def test_scores_move_by_less_than_a_hundredth_of_their_spread(full, merged, spread):
    values = latents(5, 1, spread)
    before, after = scores(full, values), scores(merged, values)
    changes = np.abs(after - before) / scores(full, latents(5, 2)).std()
    assert np.sqrt(np.mean(changes**2)) < 0.01
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9999


def test_scores_of_healthy_latents_move_by_far_less_and_to_both_sides(full, merged):
    """A shift that all heads have at a voxel would be a shift of the map."""
    values = latents(40, 1)
    before, after = scores(full, values), scores(merged, values)
    changes = (after - before) / before.std()
    assert np.sqrt(np.mean(changes**2)) < 0.002
    assert np.abs(changes.mean(axis=0)).max() < 0.005


def test_one_vector_per_voxel_that_is_no_latent(full, merged):
    assert full.field.n_support.min() > 3 and (merged.field.n_support == 1).all()
    assert not merged.field.arrays.support_vectors[:, :-1].any()
    np.testing.assert_allclose(merged.field.total_dual, full.field.total_dual)
    assert merge_support_vectors(merged) is None


def test_the_gaussian_of_a_voxel_has_the_moments_of_its_support_vectors(full, merged):
    """Direct computation of the module's formulas, and the limit of a flat kernel: the mean of the support vectors."""
    for voxel in (0, 100, MASK.size - 1):
        vectors, coef = full.field.support(voxel)
        weights, gamma = coef / coef.sum(), full.field.arrays.gamma[voxel]
        mean = weights @ vectors
        offsets = vectors - mean
        scatter = (weights[:, None] * offsets).T @ offsets
        metric = np.eye(SIZE) - 2 * gamma * scatter
        old, new = (each.whitening.factor(voxel, voxel + 1)[0].astype(float) for each in (full, merged))
        np.testing.assert_allclose(new.T @ new, old.T @ metric @ old, rtol=0.02, atol=2e-3 * np.abs(old.T @ old).max())
        white = old @ (merged.whitening.mean[voxel] - full.whitening.mean[voxel])
        assert np.abs(white - mean).max() < 10 * gamma * np.abs(offsets).max() ** 2


def test_a_single_support_vector_is_kept(full):
    arrays = full.field.arrays
    first = full.field.start[:-1]
    one = replace(
        arrays,
        support_vectors=arrays.support_vectors[first],
        dual_coef=np.full(MASK.size, 4.0, np.float32),
        n_support=np.ones(MASK.size, np.uint16),
    )
    scorer = replace(full, field=type(full.field)(one, full.field.nu, full.field.gamma))
    values = latents(3, 4)
    merged = merge_support_vectors(scorer)
    # The whitening is stored with 11 bits.
    np.testing.assert_allclose(scores(merged, values), scores(scorer, values), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("settings", [{"gamma": 0.5}, {"latent_scaling": "raw"}])
def test_a_narrow_kernel_and_raw_latents_are_not_merged(settings):
    assert merge_support_vectors(svms(**settings)) is None


def test_a_merged_scorer_is_saved_and_loaded(merged, tmp_path):
    merged.save(tmp_path)
    loaded = OneClassSvms.load(tmp_path, MASK, DetectorSettings())
    values = latents(2, 5)
    np.testing.assert_array_equal(scores(loaded, values), scores(merged, values))


# -- change of scores --------------------------------------------------------------------------------------------------
def calibrated(scorer, regression=None):
    calibration = Calibration(np.ones(MASK.size, "f4"), np.arange(2.0), np.arange(2.0), 1.0, MASK.mask_hash)
    return CalibratedScorer("ocsvm", None, scorer, calibration, None, None, regression)  # type: ignore[arg-type]


def test_the_change_of_scores_is_that_of_real_features(full, merged):
    assert score_change(calibrated(full), calibrated(full)).large == 0
    change = score_change(calibrated(full), calibrated(merged))
    assert 0 < change.typical < 0.01 and change.typical < change.large < 0.1


def test_a_change_of_the_slopes_is_a_change_of_the_scores(full):
    slopes = np.random.default_rng(0).normal(size=(2, MASK.size, SIZE)).astype("f2")
    one, other = (calibrated(full, ConfoundRegression(values)) for values in (slopes, 1.1 * slopes))
    assert score_change(one, calibrated(full, ConfoundRegression(slopes.copy()))).large < 1e-6
    assert score_change(one, other).typical > 0.01


def test_raw_latents_are_not_measured():
    scorer = calibrated(svms(latent_scaling="raw"))
    assert score_change(scorer, scorer) is None
