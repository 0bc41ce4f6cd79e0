"""Moments over the subsets of a cross-validation, against direct implementations."""

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.features import moments as module
from voxout.models.features import slabs
from voxout.models.features.moments import SubsetMoments
from voxout.models.features.slabs import slabs_of
from voxout.models.features.subsets import Subsets, effective_number, effective_weights
from voxout.preprocessing.patches.voxel_mask import VoxelMask

from .slow_whitening import slow_pooled, slow_slopes

# The last plane but one is empty, so that a plane has neighbours on one side only.
BRAIN = np.random.default_rng(0).random((7, 5, 4)) < 0.6
BRAIN[5] = False
BRAIN[6, 2, 2] = True
MASK = VoxelMask(Grid(BRAIN.shape, np.eye(4)), BRAIN)
FOLDS = [np.array([3, 8, 1]), np.array([0, 9, 6, 4]), np.array([7, 2, 5])]
EVERYONE = np.arange(10)
TRAINING_SETS = [*(np.setdiff1d(EVERYONE, fold) for fold in FOLDS), EVERYONE]


def features_of(d=3, missing=0.0, seed=1):
    """Features of ten controls that depend on two confounds, whose means differ between voxels."""
    random = np.random.default_rng(seed)
    confounds = [random.normal(1.0, 2.0, (10, 2)) for _ in range(4)]  # as learnt on each subset
    mixing = random.normal(size=(MASK.size, d, d))
    features = np.einsum("pij,spj->spi", mixing, random.normal(size=(10, MASK.size, d)))
    features += 3 * random.normal(size=(MASK.size, d)) + 0.3 * (confounds[0] @ random.normal(size=(2, d)))[:, None]
    absent = random.random(features.shape[:2]) < missing
    absent[[3, 8, 0, 9, 7, 2]] = False  # two of each fold are everywhere
    features[absent] = np.nan
    return features.astype(np.float32), confounds


def moments_of(features, subsets, jobs=1):
    """Slopes (R, k, P, d), means (R, P, d) and covariances (R, P, d, d) of the whole brain."""
    parts = [*SubsetMoments(features[subsets.order], MASK, subsets, jobs).slabs()]
    slopes, mean, packed = (
        np.concatenate([getattr(part, name) for part in parts], axis=axis)
        for name, axis in (("slopes", 2), ("mean", 1), ("covariance", 1))
    )
    d = mean.shape[2]
    rows, columns = np.tril_indices(d)
    covariance = np.empty((*packed.shape[:2], d, d))
    covariance[..., rows, columns] = covariance[..., columns, rows] = packed
    return slopes, mean, covariance


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize(("numbers", "block"), [(1, 1), (30_000, 200), (16_000_000, 2_000_000)])
def test_against_the_direct_implementation(monkeypatch, missing, numbers, block):
    """For slabs and blocks of different sizes."""
    monkeypatch.setattr(slabs, "_SLAB_NUMBERS", numbers)
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", block)
    features, confounds = features_of(missing=missing)
    slopes, mean, covariance = moments_of(features, Subsets(FOLDS, confounds), jobs=2)
    for subset, controls in enumerate(TRAINING_SETS):
        own = confounds[subset][controls]
        expected = slow_slopes(features[controls], own, MASK)
        np.testing.assert_allclose(slopes[subset], expected, rtol=1e-3, atol=1e-4)  # stored in half precision
        residuals = features[controls] - np.einsum("sk,kpd->spd", own, slopes[subset].astype(np.float64))
        np.testing.assert_allclose(mean[subset], np.nanmean(residuals, axis=0), atol=2e-6)
        np.testing.assert_allclose(covariance[subset], slow_pooled(residuals, MASK), rtol=1e-4, atol=2e-5)


def test_without_confounds_or_folds():
    features, _ = features_of()
    slopes, mean, covariance = moments_of(features, Subsets.everyone(np.empty((10, 0))))
    assert slopes.shape == (1, 0, MASK.size, 3)
    np.testing.assert_allclose(mean[0], features.mean(axis=0), atol=2e-6)
    np.testing.assert_allclose(covariance[0], slow_pooled(features, MASK), rtol=1e-4, atol=2e-5)


def test_an_outlier_costs_no_precision_in_the_subset_without_it():
    """Subtracting its products from those of all controls would leave no digit in single precision."""
    features, _ = features_of()
    spoilt = features.copy()
    spoilt[FOLDS[0][0]] += 3e4
    subsets = Subsets(FOLDS, [np.empty((10, 0))] * 4)
    (_, before, clean), (_, after, found) = moments_of(features, subsets), moments_of(spoilt, subsets)
    np.testing.assert_allclose(after[0], before[0], atol=1e-3)
    np.testing.assert_allclose(found[0], clean[0], rtol=5e-3, atol=5e-3)
    assert found[1].max() > 1e6


WEIGHTS = np.array([1, 2, 1, 3, 2, 1, 0, 2, 1, 1])


def repeated(features, confounds, weights=WEIGHTS):
    """Features, confounds and folds with every control so many times."""
    times = np.repeat(np.arange(10), weights)
    folds = [np.flatnonzero(np.isin(times, fold)) for fold in FOLDS]
    return features[times], Subsets(folds, [values[times] for values in confounds])


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_integer_weights_are_repeated_controls(missing):
    features, confounds = features_of(missing=missing)
    found = moments_of(features, Subsets(FOLDS, confounds, WEIGHTS))
    expected = moments_of(*repeated(features, confounds))
    for own, other, tolerance in zip(found, expected, (1e-3, 1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(own, other, rtol=tolerance, atol=0.1 * tolerance)


def test_a_weight_of_zero_is_a_control_that_is_not_there():
    features, confounds = features_of()
    weights = np.array([1.5, 0.2, 1, 1, 2, 0.7, 0, 1, 1, 1])
    spoilt = features.copy()
    spoilt[6] = 1e4
    left = np.delete(EVERYONE, 6)
    folds = [np.flatnonzero(np.isin(left, fold)) for fold in FOLDS]
    expected = moments_of(features[left], Subsets(folds, [values[left] for values in confounds], weights[left]))
    for own, other in zip(moments_of(spoilt, Subsets(FOLDS, confounds, weights)), expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=5e-3, atol=5e-3)


def test_weights_of_one_change_no_bit():
    features, confounds = features_of(missing=0.4)
    expected = moments_of(features, Subsets(FOLDS, confounds))
    for own, other in zip(moments_of(features, Subsets(FOLDS, confounds, np.ones(10))), expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_voxel_where_few_controls_with_little_weight_are_has_finite_moments():
    features, confounds = features_of()
    features[np.setdiff1d(EVERYONE, [3, 0, 7]), 17] = np.nan
    weights = np.where(np.isin(EVERYONE, [3, 0, 7]), 0.01, 1.0)
    _, _, covariance = moments_of(features, Subsets(FOLDS, confounds, weights))
    assert np.isfinite(covariance).all() and (np.linalg.eigvalsh(covariance[:, 17]) > 0).all()
    features[:, 17] = np.nan
    with pytest.raises(UserError, match="fewer than 2 controls have features at voxel 17"):
        moments_of(features, Subsets(FOLDS, confounds, weights))


def test_effective_number_of_controls():
    assert effective_number(np.ones(7)) == 7
    assert effective_number(np.array([1.0, 0, 0])) == 1
    weights = np.array([0.2, 0.5, 1.0])
    assert effective_number(weights) == pytest.approx(1.7**2 / 1.29)
    assert effective_weights(weights).sum() == pytest.approx(effective_number(weights))
    assert effective_number(effective_weights(weights)) == pytest.approx(effective_number(weights))
    np.testing.assert_array_equal(effective_weights(np.ones(7)), 1)


def test_slabs_cover_the_mask_once_and_know_their_neighbours(monkeypatch):
    for numbers in (1, 100, 300, 10**9):
        monkeypatch.setattr(slabs, "_SLAB_NUMBERS", numbers)
        found = slabs_of(MASK, 4)
        assert [slab.start for slab in found[1:]] == [slab.stop for slab in found[:-1]]
        assert (found[0].start, found[-1].stop) == (0, MASK.size)
        x = MASK.locations[:, 0]
        for slab in found:
            near = np.flatnonzero((x >= x[slab.start] - 1) & (x <= x[slab.stop - 1] + 1))
            assert (slab.low, slab.high) == (near[0], near[-1] + 1) or slab.x_high - slab.x_low > 1
    assert len(found) == 1


def test_subsets_are_all_controls_without_a_fold_and_all():
    subsets = Subsets(FOLDS, [np.empty((10, 0))] * 4)
    for subset, controls in enumerate(TRAINING_SETS):
        inside, outside = subsets.place(subset)
        np.testing.assert_array_equal(np.sort(subsets.order[inside]), controls)
        np.testing.assert_array_equal(np.sort(subsets.order[outside]), np.setdiff1d(EVERYONE, controls))


def test_a_subset_with_a_single_control_at_a_voxel_is_named():
    features, _ = features_of()
    features[np.setdiff1d(EVERYONE, [3, 8]), 17] = np.nan  # both in the first fold
    with pytest.raises(UserError, match="fewer than 2 controls have features at voxel 17"):
        moments_of(features, Subsets(FOLDS, [np.empty((10, 0))] * 4))
