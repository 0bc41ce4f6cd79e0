"""One-pass curves against thresholding and labelling at every score."""

import numpy as np
import pytest
from scipy import ndimage, optimize
from voxout.evaluation.metrics.lesion_metrics import (
    ClusterCurve,
    cluster_curve,
    froc_curve,
    froc_scores,
    operating_threshold,
)

TOUCHING = np.ones((3, 3, 3), bool)


def slow_clusters(scores, truth, threshold, smallest):
    labels, _ = ndimage.label(scores >= threshold, structure=TOUCHING)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.flatnonzero(sizes >= smallest)
    false = [k for k in kept if not truth[labels == k].any()]
    return len(kept), len(false), np.isin(labels, kept)


def random_volume(seed):
    random = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(random.standard_normal((9, 8, 10)), 0.6 + 0.1 * (seed % 3))
    scores = np.round(scores * 20) if seed % 2 else scores
    scores = np.where(random.random(scores.shape) < 0.1, -np.inf, scores).astype(np.float32)
    truth = ndimage.gaussian_filter(random.standard_normal(scores.shape), 1) > 0.35
    return scores, truth, ndimage.label(truth, structure=TOUCHING)[0].astype(np.int32)


@pytest.mark.parametrize("smallest", [1, 3, 7])
@pytest.mark.parametrize("seed", range(8))
def test_every_threshold_agrees_with_labelling(seed, smallest):
    scores, truth, labels = random_volume(seed)
    curve, found, _ = cluster_curve(scores, labels, smallest_voxels=smallest)
    found_slowly = np.full(labels.max(), -np.inf)
    for threshold in np.unique(scores[np.isfinite(scores)])[::-1]:
        clusters, false, flagged = slow_clusters(scores, truth, threshold, smallest)
        assert curve.clusters_at(threshold) == clusters
        assert curve.false_clusters_at(threshold) == false
        for label in np.unique(labels[flagged & truth]):
            found_slowly[label - 1] = max(found_slowly[label - 1], threshold)
    np.testing.assert_array_equal(found, found_slowly)


def test_nothing_is_flagged_above_the_maximum():
    scores, _, labels = random_volume(0)
    curve, _, _ = cluster_curve(scores, labels)
    assert curve.clusters_at(scores.max() + 1) == 0
    np.testing.assert_array_equal(curve.clusters_at(np.array([np.inf, scores.max()])), [0, 1])


def test_a_cluster_on_a_lesion_too_small_to_count_is_not_false():
    scores = np.full((5, 5, 5), -1, np.float32)
    scores[1, 1, 1] = scores[3, 3, 3] = 2
    small = np.zeros(scores.shape, bool)
    small[3, 3, 3] = True
    curve, found, _ = cluster_curve(scores, np.zeros(scores.shape, np.int32), any_lesion=small)
    assert (curve.clusters_at(2), curve.false_clusters_at(2), len(found)) == (2, 1, 0)


def test_a_map_without_scores_has_no_clusters():
    labels = np.zeros((3, 3, 3), np.int32)
    labels[1, 1, 1] = 1
    curve, found, _ = cluster_curve(np.full((3, 3, 3), -np.inf, np.float32), labels)
    assert curve.clusters_at(0.0) == 0 and found.tolist() == [-np.inf]


def curve_of(thresholds, counts):
    counts = np.array(counts, np.int32)
    return ClusterCurve(np.array(thresholds, np.float32), counts, counts)


def test_operating_point_by_hand():
    # Brain one: clusters appear at 9, 8, 7 and merge at 5. Brain two: one appears at 6, one at 4.
    one, two = curve_of([9, 8, 7, 5], [1, 2, 3, 1]), curve_of([6, 4], [1, 2])
    # A mean of one allows two in total: 9 and 8 are allowed, 7 is the third.
    false_cluster_thresholds = [one.false_cluster_thresholds, two.false_cluster_thresholds]
    threshold = operating_threshold(false_cluster_thresholds, 1.0)[0]
    assert 7 < threshold <= np.nextafter(np.float32(7), np.float32(8))
    assert one.clusters_at(threshold) + two.clusters_at(threshold) == 2
    # Below 5 the mean is 1 again, but not at every higher threshold, so this is not the operating point.
    assert operating_threshold(false_cluster_thresholds[:1], 1.0)[0] > 8
    np.testing.assert_array_equal(
        operating_threshold(false_cluster_thresholds, 1.0, np.array([[2, 0], [0, 2.0]])),
        [
            operating_threshold(false_cluster_thresholds[:1], 1.0)[0],
            operating_threshold(false_cluster_thresholds[1:], 1.0)[0],
        ],
    )
    assert np.isnan(operating_threshold(false_cluster_thresholds, 3.0)[0])


@pytest.mark.parametrize("allowed", [0.5, 1, 3])
def test_the_operating_point_is_the_lowest_valid_threshold(allowed):
    curves = [cluster_curve(random_volume(seed)[0], np.zeros((9, 8, 10), np.int32))[0] for seed in range(6)]
    threshold = operating_threshold([c.false_cluster_thresholds for c in curves], allowed)[0]
    above = np.unique(np.concatenate([c.thresholds for c in curves] + [[threshold]]))
    envelope = np.zeros(len(above))
    for curve in curves:
        counts = curve.clusters_at(above)
        envelope += np.maximum.accumulate(counts[::-1])[::-1]
    assert (envelope[above >= threshold] <= allowed * len(curves)).all()
    assert envelope[above < threshold][-1] > allowed * len(curves)


def test_froc_by_hand():
    # Two scans; false clusters appear at 8 and 5 (scan one) and at 5 (scan two); lesions are found at 9, 7, 5, never.
    curves = [curve_of([8, 5], [1, 2]), curve_of([5], [1])]
    false_cluster_thresholds, found = (
        [c.false_cluster_thresholds for c in curves],
        [np.array([9.0, 7.0]), np.array([5.0, -np.inf])],
    )
    rates, sensitivities = froc_curve(false_cluster_thresholds, found)
    np.testing.assert_allclose(rates, [0, 0.5, 1, 1.5])
    # The lesion found at 5 appears with two false clusters at the same threshold.
    np.testing.assert_allclose(sensitivities, [0.25, 0.5, 0.5, 0.75])
    # 1/4 cluster per subject allows none; 1/2 and 1 allow the first; 2, 4 and 8 allow all three. With scan one counted
    # twice, 1 allows the two at 8.
    once, first_twice = np.ones(2), np.array([2.0, 0])
    expected = [(0.25 + 2 * 0.5 + 3 * 0.75) / 6, (0.5 + 0.5 + 4 * 1) / 6]
    np.testing.assert_allclose(froc_scores(false_cluster_thresholds, found, np.array([once, first_twice])), expected)
    assert [froc_scores(false_cluster_thresholds, found, once[None], at=(rate,))[0] for rate in (0.25, 1, 2)] == [
        0.25,
        0.5,
        0.75,
    ]
    assert np.isnan(froc_scores(false_cluster_thresholds, [np.zeros(0), np.zeros(0)], once[None]))


def slow_matches(scores, labels, threshold, smallest):
    """Hungarian matching of labelled clusters and lesions by IoU (in hundredths) of at least 0.1."""
    clusters, _ = ndimage.label(scores >= threshold, structure=TOUCHING)
    gain = np.zeros((labels.max(), clusters.max()))
    for lesion in range(1, labels.max() + 1):
        for cluster in np.unique(clusters[(labels == lesion) & (clusters > 0)]):
            one, other = labels == lesion, clusters == cluster
            iou = np.floor(100 * (one & other).sum() / (one | other).sum() + 1e-9)
            gain[lesion - 1, cluster - 1] = iou + 1e-4 if iou >= 10 and other.sum() >= smallest else 0
    rows, columns = optimize.linear_sum_assignment(gain, maximize=True)
    return gain, (gain[rows, columns] > 0).sum()


@pytest.mark.parametrize("smallest", [1, 4])
def test_one_to_one_matches_agree_with_labelling_at_every_threshold(smallest):
    contested = 0
    for seed in range(6):
        scores, _, _ = random_volume(seed)
        blurred = np.where(np.isfinite(scores), scores, 0) / scores[np.isfinite(scores)].std()
        blurred += ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(scores.shape), 0.6) * 2
        labels = ndimage.label(blurred > np.quantile(blurred, 0.93), structure=TOUCHING)[0].astype(np.int32)
        _, _, overlaps = cluster_curve(scores, labels, smallest_voxels=smallest)
        thresholds = np.unique(scores[np.isfinite(scores)])[::-1]
        thresholds = np.append(thresholds[:: max(len(thresholds) // 150, 1)], thresholds[0] + 1)
        for threshold, matched in zip(thresholds, overlaps.matched_at(thresholds, labels.max()), strict=True):
            gain, pairs = slow_matches(scores, labels, threshold, smallest)
            assert matched.sum() == pairs, threshold
            assert (gain[matched].max(axis=1, initial=0) > 0).all()
            contested += pairs < (gain > 0).sum()
    assert contested > 10, "the cases include lesions that compete for a cluster, or clusters for a lesion"


def test_one_to_one_matching_by_hand():
    """One cluster over two lesions finds both by overlap, and matches one of them."""
    scores, labels = np.full((8, 3, 3), -np.inf, np.float32), np.zeros((8, 3, 3), np.int32)
    scores[0:5, 1, 1], scores[7, 1, 1] = 2, 1
    labels[0:2, 1, 1], labels[3:5, 1, 1], labels[6:8, 1, 1] = 1, 2, 3
    _, found, overlaps = cluster_curve(scores, labels)
    assert found.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(overlaps.matched_at(np.array([3, 2, 1]), 3).sum(axis=1), [0, 1, 2])
    assert overlaps.matched_at(np.array([1.0]), 3)[0, 2], "half of lesion 3: IoU 0.5"


def froc_case(seed, scans=4):
    """Distinct scores of voxels that do not touch, so that every voxel is a cluster; the last lesion is missed."""
    random = np.random.default_rng(seed)
    labels = np.zeros((scans, 15, 15, 15), np.int32)
    for scan in range(scans):
        corners = random.permutation([(x, y, z) for x in (1, 6, 11) for y in (1, 6, 11) for z in (1, 6, 11)])
        for number, (x, y, z) in enumerate(corners[: 2 + seed % 3 + scan], start=1):
            labels[scan, x : x + 3, y : y + 3, z : z + 3] = number
    order = random.random(labels.shape) + 0.6 * (labels > 0)
    scores = (1 + order.ravel().argsort().argsort().reshape(labels.shape)).astype(np.float32)
    apart = np.zeros(labels.shape, bool)
    apart[:, ::2, ::2, ::2] = random.random((scans, 8, 8, 8)) < 0.2
    apart[-1][labels[-1] == labels[-1].max()] = False
    return np.where(apart, scores, -np.inf).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(5))
def test_froc_agrees_with_monai(seed):
    """MONAI counts detections: points with a probability. It interpolates between rates, but not at rates of the curve.

    The rates of the score are multiples of 1 / (number of scans), and the curve has a point at each of them.
    """
    from monai.metrics.froc import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score

    scores, labels = froc_case(seed)
    curves, found, false, true = [], [], [], []
    for values, lesions in zip(scores, labels, strict=True):
        curve, first_found, _ = cluster_curve(values, lesions)
        curves.append(curve.false_cluster_thresholds)
        found.append(first_found)
        points = np.argwhere(np.isfinite(values))
        false_probs, true_probs, targets = compute_fp_tp_probs_nd(values[tuple(points.T)], points, lesions)
        assert targets == len(first_found)
        false.append(false_probs)
        true.append(true_probs)
    n_lesions = sum(len(probs) for probs in true)
    rates, sensitivities = compute_froc_curve_data(np.concatenate(false), np.concatenate(true), n_lesions, len(scores))
    expected = compute_froc_score(rates, sensitivities)
    assert max(rates) > 8 and 0 < expected < 1
    (score,) = froc_scores(curves, found, np.ones((1, len(scores))))
    assert score == pytest.approx(expected, abs=1e-12)
    our_rates, our_sensitivities = froc_curve(curves, found)
    # Of MONAI's points at the same rate, ours is the most sensitive.
    best = {rate: sensitivities[rates == rate].max() for rate in set(rates)}
    np.testing.assert_allclose(our_sensitivities, [best[rate] for rate in our_rates])
