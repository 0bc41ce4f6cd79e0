"""Comparison of -log10 p with their surroundings in the same head."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.calibration import Calibration, folds_of
from voxout.models.anomaly.cross_fit import CrossFit
from voxout.models.anomaly.surroundings import Surroundings, divisor, expected_level, level
from voxout.models.features.subsets import Subsets
from voxout.models.settings import ModelSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (30, 28, 26)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[2:-2, 2:-2, 2:-2] = True
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), BRAIN)
EVERYWHERE = np.ones(GRID.size, bool)
SIGMA_MM = 8.0
FLAT = np.full(GRID.size, 0.4, np.float32)


def test_the_level_is_a_gaussian_mean_over_the_brain():
    """Against the weighted mean in plain numpy."""
    random = np.random.default_rng(0)
    values = random.exponential(0.43, GRID.size).astype(np.float32)
    inside = GRID.locations[:, 0] > 6
    found = level(values, inside, GRID, SIGMA_MM)
    places_mm = 2.0 * GRID.locations
    for index in np.flatnonzero(inside)[::2000]:
        weights = np.exp(-0.5 * ((places_mm - places_mm[index]) ** 2).sum(axis=1) / SIGMA_MM**2) * inside
        assert found[index] == pytest.approx(np.average(np.minimum(values, 1), weights=weights), rel=0.01)
    assert (found[~inside] == 0).all()


@pytest.mark.parametrize(("own", "expected"), [(0.4, 1.0), (0.8, np.sqrt(2)), (0.1, np.sqrt(0.5)), (5.0, np.sqrt(2.5))])
def test_the_divisor_is_the_root_of_the_relative_level(own, expected):
    """Values above p = 0.1 count as that, and a head that fits well is not amplified without limit."""
    found = divisor(level(np.full_like(FLAT, own), EVERYWHERE, GRID, SIGMA_MM), FLAT)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_small_lesion_hardly_changes_its_surroundings():
    lesion = np.zeros(SHAPE, np.float32)
    lesion[13:16, 13:16, 12:14] = 30  # 0.14 ml
    values = np.maximum(FLAT, GRID.transform(lesion))
    ratio = divisor(level(values, EVERYWHERE, GRID, 16.0), FLAT) / divisor(level(FLAT, EVERYWHERE, GRID, 16.0), FLAT)
    assert 1 < ratio.max() < 1.005


def test_the_expected_level_is_the_mean_over_the_controls_with_brain_there():
    inside = np.array([[True, True, False], [True, False, False]])
    levels = np.array([[0.2, 0.6, 0], [0.4, 0, 0]], np.float32)
    np.testing.assert_allclose(expected_level(levels, inside), [0.3, 0.6, 0])
    assert np.isfinite(divisor(levels[0], expected_level(levels, inside))).all()


@pytest.fixture(scope="module")
def odd_heads():
    """-log10 p of 24 heads with independent voxels; every sixth is twice as unusual in its left half."""
    random = np.random.default_rng(1)
    null = random.exponential(1 / np.log(10), (24, GRID.size)).astype(np.float32)
    null[::6] *= np.where(GRID.locations[:, 0] < 15, 2, 1)
    inside = np.ones(null.shape, bool)
    folds = folds_of([f"sub-{number}" for number in range(24)], 5, seed=0)
    settings = ModelSettings.model_validate({"ensemble": {"surroundings_mm": SIGMA_MM}})
    fit = CrossFit(GRID, inside, Subsets(folds, [np.zeros((24, 0))] * 6), settings)
    fit.calibrate(null)
    before = null.copy()
    return before, fit.compare_with_surroundings(null), null


def test_odd_parts_of_a_head_count_less(odd_heads):
    before, _, after = odd_heads
    left = GRID.locations[:, 0] < 15
    share_before, share_after = ((values[::6, left] > 3).mean() for values in (before, after))
    assert share_after < 0.7 * share_before
    assert (after[:, ~left] > 3).mean() > (before[:, ~left] > 3).mean()


def test_the_result_is_calibrated(odd_heads):
    _, surroundings, null = odd_heads
    for neg_log10_p in (1, 2, 3):
        assert (null >= neg_log10_p).mean() == pytest.approx(10**-neg_log10_p, rel=0.05)
    random = np.random.default_rng(2)
    unseen = random.exponential(1 / np.log(10), (8, GRID.size)).astype(np.float32)
    found = np.stack([row / surroundings.divisor(row, EVERYWHERE) for row in unseen])
    assert (surroundings.calibration.neg_log10_p(found) >= 2).mean() == pytest.approx(0.01, rel=0.25)


def test_saved_surroundings_are_equal(odd_heads, tmp_path):
    _, surroundings, null = odd_heads
    calibration = Calibration.load(surroundings.calibration.save(tmp_path / "calibration.safetensors"))
    path = surroundings.save(tmp_path / "surroundings.safetensors")
    loaded = Surroundings.load(path, GRID, SIGMA_MM, calibration)
    np.testing.assert_array_equal(loaded.divisor(null[0], EVERYWHERE), surroundings.divisor(null[0], EVERYWHERE))


def test_surroundings_of_another_brain_are_refused(odd_heads, tmp_path):
    _, surroundings, _ = odd_heads
    shorter = replace(surroundings, expected=surroundings.expected[:-1])
    with pytest.raises(UserError, match="expected level of the surroundings.*expected 13728"):
        Surroundings.load(shorter.save(tmp_path / "s.safetensors"), GRID, SIGMA_MM, surroundings.calibration)
