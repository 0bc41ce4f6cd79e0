"""Smoothing within a brain, and calibration of the smoothed values."""

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.calibration import calibrate, folds_of
from voxout.models.anomaly.smoothing import Smoothing, smoothed
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (26, 24, 22)
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), np.ones(SHAPE, bool))
EVERYWHERE = np.ones(GRID.size, bool)


def test_a_constant_stays_constant_up_to_the_edge_of_the_brain():
    inside = GRID.locations[:, 0] > 10
    values = np.where(inside, 2.0, 99.0).astype(np.float32)
    found = smoothed(values, inside, GRID, 3.0)
    np.testing.assert_allclose(found[inside], 2.0, rtol=1e-5)
    assert (found[~inside] == 0).all()


def test_a_single_voxel_becomes_a_gaussian():
    box = np.zeros(SHAPE, np.float32)
    box[13, 12, 11] = 1
    found = GRID.inverse_transform(smoothed(GRID.transform(box), EVERYWHERE, GRID, 4.0))
    along = found.sum(axis=(1, 2))
    offsets_mm = 2.0 * (np.arange(SHAPE[0]) - 13)
    assert along.sum() == pytest.approx(1, abs=0.02)
    assert np.sqrt((along * offsets_mm**2).sum() / along.sum()) == pytest.approx(4.0, rel=0.05)


def test_smoothed_values_are_calibrated_and_favour_groups_of_voxels():
    random = np.random.default_rng(0)

    def brain() -> np.ndarray:
        """-log10 of the rank of slightly smooth noise."""
        noise = ndimage.gaussian_filter(random.normal(size=SHAPE), 0.7)
        rank = noise.ravel().argsort().argsort()
        return GRID.transform(-np.log10((GRID.size - rank) / GRID.size).reshape(SHAPE)).astype(np.float32)

    null = np.stack([smoothed(brain(), EVERYWHERE, GRID, 3.0) for _ in range(20)])
    folds = folds_of([f"sub-{number}" for number in range(20)], 5, seed=0)
    scale, _ = calibrate(null, np.ones(null.shape, bool), folds, GRID)
    smoothing = Smoothing(GRID, 3.0, scale)
    unseen = np.concatenate([smoothing.neg_log10_p(brain(), EVERYWHERE) for _ in range(20)])
    for neg_log10_p in (1.0, 1.5):  # For higher values, too few samples are independent.
        assert (unseen >= neg_log10_p).mean() == pytest.approx(10**-neg_log10_p, rel=0.25)

    single, group = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    single[13, 12, 11], group[12:15, 11:14, 10:13] = 3, 3
    alone, together = (smoothing.neg_log10_p(GRID.transform(box), EVERYWHERE).max().item() for box in (single, group))
    assert alone < 1 and together > 3
