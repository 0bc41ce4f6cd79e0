import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics.clusters import MOST_VOXELS, find_clusters, highest_voxels
from voxout.evaluation.metrics.lesion_metrics import cluster_curve

GRID = Grid((12, 12, 12), np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]]))


def volume(voxels):
    return Volume(voxels, GRID)


def everywhere():
    return volume(np.ones(GRID.size_vox, bool))


def test_two_clusters_by_hand():
    scores = np.zeros(GRID.size_vox, np.float32)
    scores[2:4, 2, 2] = [1.0, 3.0]
    scores[8:11, 8, 8] = 2.0
    truth = np.zeros(GRID.size_vox, bool)
    truth[9:12, 8, 8] = True
    healthy = (0.0, 12.0, 24.0, 30.0)
    first, second = find_clusters(
        volume(scores), 1.0, everywhere(), lesion_mask=volume(truth), largest_healthy_mm3=healthy
    )
    assert (first.rank, first.peak_score, first.mean_score, first.volume_mm3) == (1, 3.0, 2.0, pytest.approx(24))
    assert first.peak_mm == pytest.approx((4, -16, 11))
    assert first.in_lesion == 0.0
    # Two of four healthy brains have a cluster as large as the first, none has one as large as the second.
    assert (first.p_value, second.p_value) == (pytest.approx(3 / 5), pytest.approx(1 / 5))
    assert (second.rank, second.peak_score, second.volume_mm3) == (2, 2.0, pytest.approx(36))
    assert second.in_lesion == pytest.approx(2 / 3)
    assert first.voxels_mm == pytest.approx(np.array([[6, -16, 11], [4, -16, 11]]))


def test_large_clusters_keep_evenly_spread_positions():
    (found,) = find_clusters(volume(np.ones(GRID.size_vox, np.float32)), 1.0, everywhere())
    assert len(np.unique(found.voxels_mm, axis=0)) == MOST_VOXELS < 12**3
    middle = GRID.affine[:3, :3] @ [5.5, 5.5, 5.5] + GRID.affine[:3, 3]
    assert found.voxels_mm.mean(axis=0) == pytest.approx(middle, abs=0.3)


def test_small_clusters_and_voxels_outside_the_mask_are_ignored():
    scores = np.zeros(GRID.size_vox, np.float32)
    scores[2, 2, 2], scores[8:10, 8, 8] = 9.0, 5.0
    inside = everywhere()
    assert len(find_clusters(volume(scores), 1.0, inside, smallest_mm3=24)) == 1
    inside.voxels[8:10, 8, 8] = False
    (left,) = find_clusters(volume(scores), 1.0, inside)
    assert left.peak_score == 9.0 and left.in_lesion is None and left.p_value is None
    assert find_clusters(volume(scores), 10.0, inside) == ()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.5, 0.999), smallest=st.integers(1, 6))
def test_clusters_agree_with_the_cluster_curve(seed, share, smallest):
    random = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(random.standard_normal(GRID.size_vox), 1).round(2).astype(np.float32)
    inside = random.random(GRID.size_vox) < 0.9
    threshold = float(np.quantile(scores, share).astype(np.float32))
    masked = np.where(inside, scores, -np.inf).astype(np.float32)
    curve, _, _ = cluster_curve(masked, np.zeros(GRID.size_vox, np.int32), smallest_voxels=smallest)
    found = find_clusters(volume(scores), threshold, volume(inside), smallest_mm3=12.0 * smallest)
    assert len(found) == curve.clusters_at(threshold)
    assert [c.rank for c in found] == list(range(1, len(found) + 1))
    assert [c.peak_score for c in found] == sorted((c.peak_score for c in found), reverse=True)


def test_the_peak_of_a_flat_top_is_its_middle():
    scores, labels = np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9), np.int32)
    labels[1:8, 4, 4], scores[2:7, 4, 4] = 2, 5.0
    labels[0, 0, :3], scores[0, 0, 2] = 1, 3.0
    np.testing.assert_array_equal(highest_voxels(scores, labels, [1, 2]), [[0, 0, 2], [4, 4, 4]])
    np.testing.assert_array_equal(highest_voxels(scores, labels, [2]), [[4, 4, 4]])


def test_highest_voxels_agree_with_a_search_of_each_label():
    random = np.random.default_rng(3)
    labels = random.integers(0, 6, (7, 8, 9)).astype(np.int32)
    scores = random.normal(size=labels.shape)
    found = highest_voxels(scores, labels, [1, 3, 5])
    for number, index in zip((1, 3, 5), found, strict=True):
        assert labels[tuple(index)] == number and scores[tuple(index)] == scores[labels == number].max()
