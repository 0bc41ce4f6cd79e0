from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.memory_map import temporary_array
from voxout.models.anomaly.calibration import (
    Calibration,
    calibrate,
    folds_of,
    pooling_shrinkage,
    z_from_neg_log10_p,
)
from voxout.models.features.packed_masks import PackedMasks
from voxout.preprocessing.patches.voxel_mask import VoxelMask

GRID = VoxelMask(Grid((20, 20, 20), np.diag([2.0, 2, 2, 1])), np.ones((20, 20, 20), bool))


def _null(seed, subjects=30):
    return np.abs(np.random.default_rng(seed).normal(size=(subjects, GRID.size)))


def _with_null(null, inside=None, folds=5):
    inside = np.ones(null.shape, bool) if inside is None else inside
    parts = folds_of([f"sub-{number}" for number in range(len(null))], folds, seed=0)
    return calibrate(null, inside, parts, GRID)


def _calibrated(null, inside=None):
    return _with_null(null, inside)[0]


def test_unseen_scores_are_calibrated():
    calibration = _calibrated(_null(0))
    unseen = calibration.neg_log10_p(_null(1, subjects=60))
    for neg_log10_p in (0.5, 1.0, 2.0, 3.0, 4.0):
        expected = 10.0**-neg_log10_p
        # Sampling error of the unseen scores and of the null; beyond a thousandth, of the null's highest thousandth.
        seen, null = expected * unseen.size, max(expected, 1e-3) * 30 * GRID.size
        assert (unseen >= neg_log10_p).mean() == pytest.approx(expected, rel=0.03 + 3 * np.sqrt(1 / seen + 1 / null))


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_integer_weights_are_repeated_controls(scale):
    """Also where fewer than 50 values are left for the tail."""
    rng = np.random.default_rng(3)
    null, inside = _null(4, subjects=6), rng.random((6, GRID.size)) < (0.9 if scale == 1 else 2e-3)
    weights, folds = np.array([1, 3, 0, 2, 1, 4]), [np.array([0, 3]), np.array([1, 2]), np.array([4, 5])]
    times = np.repeat(np.arange(6), weights)
    found, values = calibrate(null, inside, folds, GRID, weights=weights)
    again = [np.flatnonzero(np.isin(times, fold)) for fold in folds]
    expected, values_again = calibrate(null[times], inside[times], again, GRID)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
    assert len(found.knots) == len(expected.knots)
    np.testing.assert_allclose(found.knots, expected.knots, rtol=1e-6)
    np.testing.assert_allclose(found.neg_log10_p_at, expected.neg_log10_p_at, rtol=1e-6)
    assert found.slope == pytest.approx(expected.slope, rel=1e-4)
    np.testing.assert_allclose(values[times], values_again, rtol=1e-4, atol=1e-5)


def test_fractions_as_weights_are_calibrated():
    """Controls of another age with wider scores count less."""
    rng = np.random.default_rng(0)
    weights = np.repeat([1.0, 1e-5], 20)
    null = _null(5, subjects=40) * np.where(weights == 1, 1, 3)[:, None]
    folds = np.array_split(rng.permutation(40), 5)
    matched = calibrate(null, np.ones(null.shape, bool), folds, GRID, weights=weights)[0]
    unseen = matched.neg_log10_p(_null(6, subjects=40))
    for neg_log10_p in (1.0, 2.0, 3.0):
        assert (unseen >= neg_log10_p).mean() == pytest.approx(10.0**-neg_log10_p, rel=0.3)
    alike = calibrate(null, np.ones(null.shape, bool), folds, GRID)[0]
    assert (alike.neg_log10_p(_null(6, subjects=40)) >= 2).mean() < 1e-3


def test_weights_of_one_change_no_bit():
    null, inside = _null(0, subjects=7), np.random.default_rng(1).random((7, GRID.size)) < 0.9
    folds = [np.arange(3), np.arange(3, 7)]
    (one, values), (other, others) = (
        calibrate(null, inside, folds, GRID, weights=weights) for weights in (None, np.ones(7))
    )
    np.testing.assert_array_equal(values, others)
    for name in ("scale", "knots", "neg_log10_p_at", "slope"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_own_fold_has_half_weight_in_the_scale():
    """Against a direct computation for each fold."""
    null, inside = _null(0, subjects=7), np.random.default_rng(1).random((7, GRID.size)) < 0.9
    calibration, neg_log10_p = _with_null(null, inside, folds=3)

    def scale_without_half_of(fold):
        weights = np.where(np.isin(np.arange(7), fold), 0.5, 1.0)[:, None] * inside
        brain = (weights * null**2).sum() / weights.sum()
        # Pooled over 3 mm, which are 1.5 voxels.
        squares, brains = (
            ndimage.gaussian_filter(part.sum(axis=0).reshape(20, 20, 20), 1.5, mode="constant").ravel()
            for part in (weights * null**2, weights)
        )
        return np.sqrt((7 * squares / brains + 12.5 * brain) / 19.5)

    np.testing.assert_allclose(calibration.scale, scale_without_half_of([]), rtol=1e-5)
    for fold in folds_of([f"sub-{number}" for number in range(7)], 3, seed=0):
        expected = replace(calibration, scale=scale_without_half_of(fold)).neg_log10_p(null[fold])
        np.testing.assert_allclose(neg_log10_p[fold], expected, rtol=1e-4, atol=1e-4)


def test_the_null_maps_are_calibrated():
    null, inside = _null(0, subjects=4), np.random.default_rng(1).random((4, GRID.size)) < 0.9
    _, neg_log10_p = _with_null(null, inside)
    for expected in (1.0, 2.0, 3.0):
        found = (neg_log10_p[inside] >= expected - 1e-4).mean()
        assert found == pytest.approx(10**-expected, rel=0.05, abs=3 / inside.sum())


def test_scores_on_disk_are_calibrated_in_place(tmp_path):
    null, folds = _null(0, subjects=7).astype(np.float32), [np.arange(3), np.arange(3, 7)]
    inside = np.random.default_rng(1).random(null.shape) < 0.9
    mapped = temporary_array(tmp_path, np.float32, null.shape)
    mapped[:] = null
    expected, in_memory = calibrate(null, inside, folds, GRID)
    found, out = calibrate(mapped, PackedMasks.pack(inside, GRID.size), folds, GRID, out=mapped)
    assert out is mapped
    np.testing.assert_array_equal(out, in_memory)
    for name in ("scale", "knots", "neg_log10_p_at", "slope"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_voxels_without_other_controls_use_the_scale_of_the_brain():
    null, inside = _null(0, subjects=3), np.ones((3, GRID.size), bool)
    alone = GRID.locations[:, 0] < 10
    inside[1:, alone] = False
    _, neg_log10_p = _with_null(null, inside)
    assert neg_log10_p[0][alone].max() < 8 and np.isfinite(neg_log10_p).all()
    inside[0, alone] = False
    nobody_near = GRID.locations[:, 0] < 3
    np.testing.assert_allclose(
        _calibrated(null, inside).scale[nobody_near], np.sqrt((null[inside] ** 2).mean()), rtol=1e-5
    )


def test_the_tail_is_extrapolated_as_fitted():
    """For exponential scores, -log10 p is the score times log10(e)."""
    null = np.random.default_rng(0).exponential(size=(30, GRID.size))
    calibration = _calibrated(null)
    scores = np.array([[2.0], [5.0], [20.0], [50.0]])
    found = calibration.neg_log10_p(np.broadcast_to(scores, (4, GRID.size))).mean(axis=1)
    np.testing.assert_allclose(found, scores[:, 0] * np.log10(np.e), rtol=0.08)


def test_the_whole_brain_counts_less_with_more_controls():
    weights = [pooling_shrinkage(controls) for controls in (4, 12, 50, 500)]
    assert weights == pytest.approx([12.5 / 16.5, 12.5 / 24.5, 0.2, 12.5 / 512.5])


def test_scores_count_less_where_healthy_brains_vary_more():
    variable = np.arange(GRID.size) < GRID.size // 2
    # With this many controls, the scale of the whole brain counts little.
    null = _null(0, subjects=200) * np.where(variable, 5.0, 1.0)
    neg_log10_p = _calibrated(null).neg_log10_p(np.full(GRID.size, 5.0))
    assert neg_log10_p[variable].mean() < 1 < 3 < neg_log10_p[~variable].mean()


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(1e-3, 1e3))
def test_the_unit_of_the_scores_does_not_matter(factor):
    null, scores = _null(0, subjects=4), _null(5, subjects=1)[0]
    ours = _calibrated(null * factor).neg_log10_p(scores * factor)
    np.testing.assert_allclose(ours, _calibrated(null).neg_log10_p(scores), atol=2e-3)


def test_neg_log10_p_never_decreases_with_the_score():
    calibration = _calibrated(_null(0))
    ladder = np.stack([calibration.neg_log10_p(np.full(GRID.size, score)) for score in np.linspace(-1, 60, 200)])
    assert (np.diff(ladder, axis=0) >= 0).all()
    assert np.isfinite(ladder).all()


def test_scores_outside_the_brain_are_ignored():
    null, inside = _null(0), np.random.default_rng(1).random((30, GRID.size)) < 0.7
    spoilt = np.where(inside, null, 1e6)
    ours, theirs = _calibrated(spoilt, inside), _calibrated(null, inside)
    np.testing.assert_array_equal(ours.knots, theirs.knots)
    np.testing.assert_array_equal(ours.scale, theirs.scale)


def test_z_is_the_normal_quantile():
    for neg_log10_p, p in ((3.0, 1e-3), (0.30103, 0.5), (10.0, 1e-10)):
        assert z_from_neg_log10_p(np.array([neg_log10_p]))[0] == pytest.approx(stats.norm.isf(p), abs=1e-4)
    far = z_from_neg_log10_p(np.array([0.0, 400.0, 5000.0]))
    assert np.isfinite(far).all() and (np.diff(far) > 0).all()


def test_saved_and_loaded_to_the_bit(tmp_path):
    calibration = _calibrated(_null(0))
    loaded = Calibration.load(calibration.save(tmp_path / "calibration.safetensors"))
    scores = _null(3, subjects=1)
    np.testing.assert_array_equal(loaded.neg_log10_p(scores), calibration.neg_log10_p(scores))
    assert loaded.mask_hash == GRID.mask_hash


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "calibration.safetensors"
    for content in (None, b"", b"\x08\0\0\0\0\0\0\0{}      "):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="holds no complete calibration .*Run the stage fit again"):
            Calibration.load(path)


def test_scores_that_are_0_or_not_finite_are_refused():
    with pytest.raises(UserError, match="the controls' scores are all 0, expected scores that differ"):
        _calibrated(np.zeros((3, GRID.size)))
    with pytest.raises(UserError, match="the controls' scores are not finite, expected finite ones"):
        _calibrated(np.full((3, GRID.size), np.nan))


@given(
    participants=st.lists(st.integers(0, 40), min_size=3, max_size=90), folds=st.integers(2, 10), seed=st.integers(0, 5)
)
def test_folds_contain_every_scan_once_grouped_by_participant(participants, folds, seed):
    names = [f"sub-{participant}" for participant in participants]
    parts = folds_of(names, folds, seed)
    assert len(parts) == min(len(set(names)), folds)
    assert sorted(np.concatenate(parts)) == list(range(len(names)))
    participants = [{names[scan] for scan in part} for part in parts]
    assert sum(map(len, participants)) == len(set(names)), "no participant is in two folds"
    assert max(map(len, participants)) - min(map(len, participants)) <= 1
