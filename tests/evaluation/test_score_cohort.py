import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.volume import Grid, Volume
from voxout.evaluation.score_cohort import score_cohort
from voxout.evaluation.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((14, 14, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=16, bootstrap_draws=200, false_clusters=2)


def make(number, *, healthy=False, contrast=2.0, lesion_mask=True, scale=1.0, shift=0.0):
    random = np.random.default_rng(number)
    lesion = np.zeros(GRID.size_vox, bool)
    if not healthy:
        for x, y, z in random.integers(2, 10, size=(2, 3)):
            lesion[x : x + 2, y : y + 2, z : z + 2] = True
    smooth = ndimage.gaussian_filter(random.standard_normal(GRID.size_vox), 0.7) * 3
    map = Volume((scale * (smooth + contrast * lesion) + shift).astype(np.float32), GRID)
    inside = Volume(np.ones(GRID.size_vox, bool), GRID)
    truth = Volume(lesion, GRID) if lesion_mask and not healthy else None
    scores = score_map(
        f"sub-{number:02}", map, inside, truth, None, SETTINGS, group="control" if healthy else "patient"
    )
    return scores, map.voxels.ravel().astype(np.float64), lesion.ravel()


@pytest.fixture(scope="module")
def cohort():
    made = [make(n, healthy=n < 4) for n in range(9)]
    return score_cohort([s for s, _, _ in made], SETTINGS), made


def test_pooled_figures(cohort):
    scores, made = cohort
    values, truth = np.concatenate([v for _, v, _ in made]), np.concatenate([t for _, _, t in made])
    value = {name: estimate.value for name, estimate in scores.estimates.items()}
    assert value["auroc"] == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-9)
    assert value["auroc_fpr30_mcclish"] == pytest.approx(metrics.roc_auc_score(truth, values, max_fpr=0.3), abs=1e-9)
    assert value["average_precision"] == pytest.approx(metrics.average_precision_score(truth, values), abs=1e-9)
    assert value["prevalence"] == pytest.approx(truth.mean())
    each = [metrics.roc_auc_score(t, v) for _, v, t in made[4:]]
    assert value["auroc_per_subject_mean"] == pytest.approx(np.mean(each))
    assert scores.estimates["auroc_per_subject_mean"].n == 5


def test_figures_at_the_operating_point(cohort):
    scores, made = cohort
    threshold = np.float32(scores.threshold)
    healthy = [s.clusters.clusters_at(threshold) for s, _, _ in made[:4]]
    assert sum(healthy) <= 8
    values, truth = np.concatenate([v for _, v, _ in made]), np.concatenate([t for _, _, t in made])
    flagged = values >= threshold
    estimates = scores.estimates
    dice = 2 * (flagged & truth).sum() / (flagged.sum() + truth.sum())
    assert estimates["dice_at_healthy_threshold"].value == pytest.approx(dice)
    assert dice <= estimates["best_dice_pooled"].value
    found = sum(s.lesions_found_at(threshold) for s, _, _ in made)
    lesions = sum(len(s.lesions) for s, _, _ in made)
    assert estimates["lesion_sensitivity"].value == pytest.approx(found / lesions)
    assert estimates["lesion_sensitivity"].n == lesions
    false = np.mean([s.clusters.false_clusters_at(threshold) for s, _, _ in made[4:]])
    assert estimates["false_clusters_per_subject"].value == pytest.approx(false)
    row = scores.row("sub-07")
    assert row.lesions_found == made[7][0].lesions_found_at(threshold)
    assert row.flagged_ml == pytest.approx((made[7][1] >= threshold).sum() * 8 / 1000)


def test_healthy_scans_are_counted_at_a_threshold_they_did_not_set(cohort):
    scores, made = cohort
    counts = []
    for left_out in range(4):
        others = [made[i][0] for i in range(9) if i != left_out]
        threshold = score_cohort(others, SETTINGS).threshold
        counts.append(made[left_out][0].clusters.clusters_at(threshold))
    assert scores.estimates["false_clusters_per_healthy_subject"].value == pytest.approx(np.mean(counts))


def test_every_interval_holds_its_value(cohort):
    scores, _ = cohort
    for name, estimate in scores.estimates.items():
        assert estimate.reason_undefined is None, name
        assert estimate.ci_low <= estimate.value <= estimate.ci_high, name
    assert scores.estimates["auroc"].ci_low < scores.estimates["auroc"].ci_high


def test_intervals_are_those_of_pooling_resampled_subjects_anew(cohort):
    """The slow way: scikit-learn on the concatenated voxels of each draw."""
    from voxout.evaluation.intervals import resample_subjects

    scores, made = cohort
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s, _, _ in made], 200, 0).astype(int)
    drawn = []
    for weight in weights:
        values = np.concatenate([np.tile(v, w) for (_, v, _), w in zip(made, weight, strict=True)])
        truth = np.concatenate([np.tile(t, w) for (_, _, t), w in zip(made, weight, strict=True)])
        drawn.append((metrics.roc_auc_score(truth, values), metrics.average_precision_score(truth, values)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for name, expected_low, expected_high in zip(("auroc", "average_precision"), low, high, strict=True):
        assert scores.estimates[name].ci_low == pytest.approx(expected_low, abs=1e-9)
        assert scores.estimates[name].ci_high == pytest.approx(expected_high, abs=1e-9)


def test_froc_draws_agree_with_the_curve(cohort):
    """A draw with every subject once is the cohort itself."""
    from voxout.evaluation import score_cohort as module

    scores, made = cohort
    once = np.ones((3, len(made)))
    estimate = module._froc_estimate([s for s, _, _ in made], scores.froc, once, SETTINGS)
    assert estimate.ci_low == estimate.ci_high == pytest.approx(estimate.value)


def test_shift_and_scale_of_all_maps_change_nothing():
    plain = score_cohort([make(n, healthy=n < 3)[0] for n in range(7)], SETTINGS)
    moved = score_cohort([make(n, healthy=n < 3, scale=64.0, shift=-1000.0)[0] for n in range(7)], SETTINGS)
    for name, estimate in plain.estimates.items():
        if name != "healthy_threshold":
            assert moved.estimates[name].value == pytest.approx(estimate.value, abs=1e-6), name
    assert moved.threshold == pytest.approx(64 * plain.threshold - 1000, rel=1e-5)


def test_without_healthy_scans_nothing_sets_a_threshold():
    scores = score_cohort([make(n)[0] for n in range(3)], SETTINGS)
    assert scores.threshold is None
    for name in ("dice_at_healthy_threshold", "lesion_sensitivity", "false_clusters_per_subject", "healthy_threshold"):
        assert "no healthy scan" in scores.estimates[name].reason_undefined
    assert scores.estimates["auroc"].value > 0.5
    assert scores.row("sub-01").dice is None


def test_without_a_lesion_there_is_a_threshold_and_no_auroc():
    scores = score_cohort([make(n, healthy=True)[0] for n in range(4)], SETTINGS)
    assert scores.threshold is not None
    assert scores.estimates["auroc"].reason_undefined
    assert scores.estimates["froc_score"].reason_undefined
    assert scores.estimates["lesion_sensitivity"].reason_undefined
    assert scores.estimates["false_clusters_per_healthy_subject"].value is not None


def test_patients_of_unknown_truth_enter_no_figure():
    known = [make(n, healthy=n < 3)[0] for n in range(7)]
    with_unknown = score_cohort([*known, make(40, lesion_mask=False)[0]], SETTINGS)
    assert with_unknown.estimates == score_cohort(known, SETTINGS).estimates
    row = with_unknown.row("sub-40")
    assert row.clusters is not None and row.false_clusters is None and row.dice is None


def test_a_map_without_contrast_sets_no_threshold():
    flat = [
        score_map(
            f"sub-{n}",
            Volume(np.ones(GRID.size_vox, np.float32), GRID),
            Volume(np.ones(GRID.size_vox, bool), GRID),
            None,
            None,
            SETTINGS,
            group="control",
        )
        for n in range(3)
    ]
    assert "every voxel flagged" in score_cohort(flat, SETTINGS).estimates["healthy_threshold"].reason_undefined


def test_nobody_and_the_same_one_twice_are_errors():
    with pytest.raises(UserError, match="No map was scored"):
        score_cohort([], SETTINGS)
    one = make(1)[0]
    with pytest.raises(UserError, match="sub-01: scored more than once"):
        score_cohort([one, one], SETTINGS)
