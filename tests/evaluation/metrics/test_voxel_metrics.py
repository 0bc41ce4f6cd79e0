"""Voxel-wise metrics against scikit-learn (float64, since its float32 path rounds) and slow references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from voxout.evaluation.metrics import voxel_metrics as vm

CLOSE = 1e-9


def counted(scores, truth, weights=None):
    histogram = vm.ScoreHistogram.from_voxels(scores, truth, None if weights is None else weights[truth])
    return rank_counts([histogram])


def rank_counts(histograms, *, every=1):
    return vm.rank_counts(histograms, vm.common_edges([h.lesion_scores for h in histograms], every))


def random_case(seed):
    """Random scores with or without ties, heavy tails, offsets, separable classes and all lesion sizes."""
    random = np.random.default_rng(seed)
    size = int(10 ** random.uniform(0.7, 4.3))
    truth = random.random(size) < random.choice([0.001, 0.02, 0.3, 0.95])
    truth[random.integers(size)] = True
    truth[(np.flatnonzero(truth)[0] + 1) % size] = False
    scores = random.standard_normal(size) if random.random() < 0.5 else random.standard_cauchy(size)
    scores = scores + truth * random.choice([-1.0, 0.0, 0.5, 30.0])
    if random.random() < 0.5:
        scores = np.round(scores * random.choice([1, 4]))
    if random.random() < 0.3:
        scores = scores * 1e-6 - 1e-3
    return scores.astype(np.float32), truth


def slow_best_dice(scores, truth):
    return max(
        2 * (flag & truth).sum() / (flag.sum() + truth.sum()) for flag in (scores >= t for t in np.unique(scores))
    )


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_scikit_learn(seed):
    scores, truth = random_case(seed)
    counts = counted(scores, truth)
    exact = scores.astype(np.float64)
    assert vm.auroc(counts) == pytest.approx(metrics.roc_auc_score(truth, exact), abs=CLOSE)
    assert vm.average_precision(counts) == pytest.approx(metrics.average_precision_score(truth, exact), abs=CLOSE)
    below = vm.area_below_fpr(counts, 0.3)
    reference = metrics.roc_auc_score(truth, exact, max_fpr=0.3)
    assert vm.mcclish(below, 0.3) == pytest.approx(reference, abs=CLOSE)
    assert below * 0.3 == pytest.approx((2 * reference - 1) * (0.3 - 0.045) + 0.045, abs=CLOSE)
    if len(scores) < 500:
        assert vm.best_dice(counts)[0] == pytest.approx(slow_best_dice(scores, truth), abs=CLOSE)
    assert vm.prevalence(counts) == pytest.approx(truth.mean())


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_best_dice_agrees_with_monai(seed):
    import torch
    from monai.metrics.meandice import DiceMetric

    scores, truth = random_case(seed)
    dice, best = vm.best_dice(counted(scores, truth))
    thresholds = np.append(best, np.unique(scores)[:: max(1, len(scores) // 50)])
    flagged = torch.from_numpy(scores >= thresholds[:, None])[:, None, :, None].float()
    lesion = torch.from_numpy(truth)[None, None, :, None].expand_as(flagged).float()
    expected = DiceMetric(reduction="none")(flagged, lesion).flatten()
    assert dice == pytest.approx(expected[0].item(), abs=1e-6) == expected.max().item()


def test_known_scores():
    # In descending order: lesion, healthy, lesion, healthy, healthy.
    counts = counted(np.array([5, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 0]) > 0)
    assert vm.auroc(counts) == pytest.approx(5 / 6)
    assert vm.average_precision(counts) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    dice, threshold = vm.best_dice(counts)
    assert (dice, threshold) == (pytest.approx(0.8), 3)
    # Up to FPR 0.3 the recall is 1/2; the next step is at FPR 1/3.
    assert vm.area_below_fpr(counts, 0.3) == pytest.approx(0.5)


def test_a_random_map_and_a_perfect_one():
    tied = counted(np.zeros(100), np.arange(100) < 7)
    assert vm.auroc(tied) == 0.5
    assert vm.area_below_fpr(tied, 0.3) == pytest.approx(0.15)
    assert vm.mcclish(vm.area_below_fpr(tied, 0.3), 0.3) == pytest.approx(0.5)
    assert vm.average_precision(tied) == pytest.approx(0.07)
    perfect = counted(np.arange(100), np.arange(100) >= 93)
    for value in (vm.auroc(perfect), vm.average_precision(perfect), vm.best_dice(perfect)[0]):
        assert value == pytest.approx(1)


def slow_aupro(scores, labels, limit):
    """Per-region overlap by thresholding at every score."""
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        flag = scores >= threshold
        fpr.append(flag[labels == 0].mean())
        pro.append(np.mean([flag[labels == k].mean() for k in range(1, labels.max() + 1)]))
    fpr, pro = np.array(fpr), np.array(pro)
    inside = fpr <= limit
    xs, ys = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    return np.trapezoid(ys, xs) / limit


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [0.3, 0.05])
def test_aupro_agrees_with_a_slow_reference(seed, limit):
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2, 3], [400, 3, 20, 60])
    scores = np.round(random.standard_normal(len(labels)) + (labels > 0), 1 + seed % 2).astype(np.float32)
    weights = np.array([0, 1 / 3, 1 / 20, 1 / 60])[labels]
    got = vm.area_below_fpr(counted(scores, labels > 0, weights), limit, per_region=True)
    assert got == pytest.approx(slow_aupro(scores, labels, limit), abs=CLOSE)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-100, 100), scale=st.floats(0.01, 100))
def test_metrics_are_invariant_to_monotone_transformations(seed, shift, scale):
    random = np.random.default_rng(seed)
    scores = random.integers(-50, 50, size=300).astype(np.float32)
    truth = random.random(300) < 0.1
    truth[:2] = True, False
    before, after = counted(scores, truth), counted(scale * scores + shift, truth)
    for metric in (vm.auroc, vm.average_precision, lambda c: vm.area_below_fpr(c, 0.3), lambda c: vm.best_dice(c)[0]):
        assert metric(after) == pytest.approx(metric(before), abs=1e-12)


def test_metrics_are_invariant_to_an_outlier_at_the_maximum():
    """The highest voxel keeps its rank, so no metric may change; equal-width bins would fail."""
    random = np.random.default_rng(1)
    truth = random.random(2_000_000) < 0.01
    scores = (random.standard_normal(len(truth)) + 2 * truth).astype(np.float32)
    outlier = scores.copy()
    outlier[scores.argmax()] *= 1000
    before, after = counted(scores, truth), counted(outlier, truth)
    for metric in (vm.auroc, vm.average_precision, lambda c: vm.area_below_fpr(c, 0.3), lambda c: vm.best_dice(c)[0]):
        assert metric(after) == pytest.approx(metric(before), abs=1e-6)


def test_histograms_of_large_scans_are_compact_and_exact():
    random = np.random.default_rng(2)
    truth = random.random(1_500_000) < 0.002
    scores = (1000 + random.standard_normal(len(truth)) + 2 * truth).astype(np.float32)
    histogram = vm.ScoreHistogram.from_voxels(scores, truth)
    assert len(histogram.healthy_scores) < 600_000
    assert histogram.n_healthy == (~truth).sum() and histogram.n_lesion == truth.sum()
    counts = rank_counts([histogram])
    exact = scores.astype(np.float64)
    assert vm.auroc(counts) == pytest.approx(metrics.roc_auc_score(truth, exact), abs=1e-9)
    assert vm.average_precision(counts) == pytest.approx(metrics.average_precision_score(truth, exact), abs=1e-9)


def test_pooled_metrics_of_compact_histograms_are_accurate():
    random = np.random.default_rng(3)
    scans = []
    for number in range(3):
        truth = random.random(700_000) < 0.003 * number
        scans.append(((random.gamma(2, size=len(truth)) + 3 * truth).astype(np.float32), truth))
    histograms = [vm.ScoreHistogram.from_voxels(*scan) for scan in scans]
    scores = np.concatenate([s for s, _ in scans]).astype(np.float64)
    truth = np.concatenate([t for _, t in scans])
    counts = rank_counts(histograms)
    assert vm.auroc(counts) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-6)
    assert vm.average_precision(counts) == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-6)
    assert vm.mcclish(vm.area_below_fpr(counts, 0.3), 0.3) == pytest.approx(
        metrics.roc_auc_score(truth, scores, max_fpr=0.3), abs=1e-6
    )
    # Relative error of the counts of flagged voxels at any threshold.
    thresholds = random.gamma(2, size=50).astype(np.float32)
    false, true = histograms[2].flagged(thresholds)
    own, own_truth = scans[2]
    np.testing.assert_allclose(false, [(own[~own_truth] >= t).sum() for t in thresholds], rtol=8e-6, atol=0)
    np.testing.assert_array_equal(true, [(own[own_truth] >= t).sum() for t in thresholds])


def test_error_with_fewer_edges_is_below_one_bin():
    random = np.random.default_rng(4)
    truth = random.random(50_000) < 0.1
    scores = (random.standard_normal(len(truth)) + truth).astype(np.float32)
    histogram = vm.ScoreHistogram.from_voxels(scores, truth)
    coarse = rank_counts([histogram], every=10)
    assert 900 < len(coarse.healthy) <= 1025
    assert vm.auroc(coarse) == pytest.approx(vm.auroc(counted(scores, truth)), abs=1 / 1024)


def test_weighted_subjects_equal_pooled_subjects():
    cases = [random_case(seed) for seed in (5, 6, 7)]
    histograms = [vm.ScoreHistogram.from_voxels(*case) for case in cases]
    edges = vm.common_edges([h.lesion_scores for h in histograms])
    each = vm.RankCounts.empty(edges, rows=3)
    for row, histogram in enumerate(histograms):
        each.add(histogram, edges, row)
    drawn = each.reweighted(np.array([[2.0, 0, 1]]))
    scores = np.concatenate([cases[i][0] for i in (0, 0, 2)]).astype(np.float64)
    truth = np.concatenate([cases[i][1] for i in (0, 0, 2)])
    assert vm.auroc(drawn)[0] == pytest.approx(metrics.roc_auc_score(truth, scores), abs=CLOSE)
    assert vm.average_precision(drawn)[0] == pytest.approx(metrics.average_precision_score(truth, scores), abs=CLOSE)


def test_curves_agree_with_scikit_learn():
    scores, truth = random_case(11)
    counts = counted(scores, truth)
    fpr, tpr = vm.roc_curve(counts)
    reference_fpr, reference_tpr, _ = metrics.roc_curve(truth, scores.astype(np.float64), drop_intermediate=False)
    np.testing.assert_allclose(np.interp(reference_fpr[1:-1], fpr, tpr) >= reference_tpr[1:-1] - 1e-9, True)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auc(reference_fpr, reference_tpr), abs=CLOSE)
    recall, precision = vm.precision_recall_curve(counts)
    assert (np.diff(recall) >= 0).all()
    steps = np.diff(recall, prepend=0)
    assert (steps * precision).sum() == pytest.approx(metrics.average_precision_score(truth, scores), abs=CLOSE)


def test_undefined_is_never_zero_or_one():
    healthy = counted(np.arange(5), np.zeros(5, bool))
    assert np.isnan([vm.auroc(healthy), vm.average_precision(healthy), vm.best_dice(healthy)[0]]).all()
    assert np.isnan(vm.area_below_fpr(healthy, 0.3))
    assert vm.as_estimate(vm.auroc(healthy), healthy).reason_undefined == vm.NO_LESION_VOXEL
    only_lesion = counted(np.arange(5), np.ones(5, bool))
    assert vm.as_estimate(vm.auroc(only_lesion), only_lesion).reason_undefined == vm.ONLY_LESION_VOXELS
    assert vm.as_estimate(vm.average_precision(only_lesion), only_lesion, needs_healthy=False).value == 1


def test_voxels_without_a_score_rank_below_all_others():
    scores = np.array([3, 2, -np.inf, -np.inf], np.float32)
    counts = counted(scores, np.array([True, False, True, False]))
    finite = metrics.roc_auc_score([1, 0, 1, 0], [3, 2, -9, -9])
    assert vm.auroc(counts) == pytest.approx(finite)
