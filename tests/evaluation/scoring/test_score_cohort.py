import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.lesion_metrics import FROC_RATES
from voxout.evaluation.scoring.sanity_checks import scoring_warnings
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
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


def test_pooled_metrics(cohort):
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


def test_metrics_at_the_operating_point(cohort):
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


def test_healthy_scans_are_counted_at_leave_one_out_thresholds(cohort):
    scores, made = cohort
    counts = []
    for left_out in range(4):
        others = [made[i][0] for i in range(9) if i != left_out]
        threshold = score_cohort(others, SETTINGS).threshold
        counts.append(made[left_out][0].clusters.clusters_at(threshold))
    assert scores.estimates["false_clusters_per_healthy_subject"].value == pytest.approx(np.mean(counts))


def test_intervals_contain_their_values(cohort):
    scores, _ = cohort
    assert "do not resolve" in scores.estimates["aupimo"].reason_undefined, "10,976 healthy voxels against 1e-5"
    for name, estimate in scores.estimates.items():
        if name == "aupimo":
            continue
        assert estimate.reason_undefined is None, name
        assert estimate.ci_low <= estimate.value <= estimate.ci_high, name
    assert scores.estimates["auroc"].ci_low < scores.estimates["auroc"].ci_high


def test_intervals_agree_with_pooling_resampled_voxels(cohort):
    """Slow reference: scikit-learn on the concatenated voxels of each bootstrap sample."""
    from voxout.evaluation.metrics.bootstrap import resample_subjects

    scores, made = cohort
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s, _, _ in made], 200, 0).astype(int)[1:]
    drawn = []
    for weight in weights:
        values = np.concatenate([np.tile(v, w) for (_, v, _), w in zip(made, weight, strict=True)])
        truth = np.concatenate([np.tile(t, w) for (_, _, t), w in zip(made, weight, strict=True)])
        drawn.append((metrics.roc_auc_score(truth, values), metrics.average_precision_score(truth, values)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for name, expected_low, expected_high in zip(("auroc", "average_precision"), low, high, strict=True):
        assert scores.estimates[name].ci_low == pytest.approx(expected_low, abs=1e-9)
        assert scores.estimates[name].ci_high == pytest.approx(expected_high, abs=1e-9)


def test_the_froc_score_agrees_with_the_curve(cohort):
    scores, _ = cohort
    rates, found = scores.froc
    at = np.searchsorted(rates, np.array(FROC_RATES) + 1e-9, side="right") - 1
    assert scores.estimates["froc_score"].value == pytest.approx(found[at].mean())


def test_metrics_are_invariant_to_shift_and_scale():
    plain = score_cohort([make(n, healthy=n < 3)[0] for n in range(7)], SETTINGS)
    moved = score_cohort([make(n, healthy=n < 3, scale=64.0, shift=-1000.0)[0] for n in range(7)], SETTINGS)
    for name, estimate in plain.estimates.items():
        if name not in ("healthy_threshold", "aupimo"):
            assert moved.estimates[name].value == pytest.approx(estimate.value, abs=1e-6), name
    assert moved.threshold == pytest.approx(64 * plain.threshold - 1000, rel=1e-5)


def test_the_threshold_is_undefined_without_healthy_scans():
    scores = score_cohort([make(n)[0] for n in range(3)], SETTINGS)
    assert scores.threshold is None
    for name in ("dice_at_healthy_threshold", "lesion_sensitivity", "false_clusters_per_subject", "healthy_threshold"):
        assert "no healthy scan" in scores.estimates[name].reason_undefined
    assert scores.estimates["auroc"].value > 0.5
    assert scores.row("sub-01").dice is None


def test_a_cohort_without_lesions_has_a_threshold_but_no_auroc():
    scores = score_cohort([make(n, healthy=True)[0] for n in range(4)], SETTINGS)
    assert scores.threshold is not None
    assert scores.estimates["auroc"].reason_undefined
    assert scores.estimates["froc_score"].reason_undefined
    assert scores.estimates["lesion_sensitivity"].reason_undefined
    assert scores.estimates["false_clusters_per_healthy_subject"].value is not None


def test_patients_of_unknown_truth_are_excluded_from_metrics():
    known = [make(n, healthy=n < 3)[0] for n in range(7)]
    with_unknown = score_cohort([*known, make(40, lesion_mask=False)[0]], SETTINGS)
    assert with_unknown.estimates == score_cohort(known, SETTINGS).estimates
    row = with_unknown.row("sub-40")
    assert row.clusters is not None and row.false_clusters is None and row.dice is None


def test_a_cohort_of_unknown_truth_has_rows_but_no_metrics():
    scores = score_cohort([make(n, lesion_mask=False)[0] for n in range(3)], SETTINGS)
    assert all(estimate.reason_undefined for estimate in scores.estimates.values())
    assert len(scores.rows) == 3 and scores.strata == () and scores.froc is None


def test_constant_maps_set_no_threshold():
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


def test_empty_cohorts_and_duplicates_raise():
    with pytest.raises(UserError, match="No map was scored"):
        score_cohort([], SETTINGS)
    one = make(1)[0]
    with pytest.raises(UserError, match="sub-01: scored more than once"):
        score_cohort([one, one], SETTINGS)


# -- AUPIMO, against thresholds on a fine grid of false-positive rates -----------------------------------------------
BIG = Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))


def make_big(number, *, healthy, contrast=3.0):
    random = np.random.default_rng(100 + number)
    lesion = np.zeros(BIG.size_vox, bool)
    if not healthy:
        lesion[5:12, 5:12, 5 : 7 + number] = True
    map = Volume((random.standard_normal(BIG.size_vox) + contrast * lesion).astype(np.float32), BIG)
    inside = Volume(np.ones(BIG.size_vox, bool), BIG)
    truth = None if healthy else Volume(lesion, BIG)
    scored = score_map(f"sub-{number}", map, inside, truth, None, SETTINGS, group="control" if healthy else "patient")
    return scored, map.voxels.ravel(), lesion.ravel()


def slow_aupimo(healthy_maps, map, lesion):
    """Recall at the lowest threshold with a mean FPR within each limit, averaged over log-spaced limits."""
    pooled = np.sort(np.concatenate(healthy_maps).astype(np.float64))[::-1]
    limits = np.geomspace(1e-5, 1e-4, 20001)
    limits = np.sqrt(limits[1:] * limits[:-1])
    allowed = np.floor(limits * len(pooled)).astype(int)
    # Thresholds are just above the first healthy voxel that exceeds the limit.
    recall = [(map[lesion] > pooled[count]).mean() for count in range(allowed.max() + 1)]
    return np.mean([recall[count] for count in allowed])


def test_aupimo_agrees_with_a_slow_reference():
    made = [make_big(n, healthy=n < 4) for n in range(8)]
    scores = score_cohort([s for s, _, _ in made], SETTINGS)
    expected = [slow_aupimo([m for _, m, _ in made[:4]], m, lesion) for _, m, lesion in made[4:]]
    assert min(expected) > 0.02 and max(expected) < 0.9
    np.testing.assert_allclose([row.aupimo for row in scores.rows[4:]], expected, atol=2e-4)
    estimate = scores.estimates["aupimo"]
    assert estimate.value == pytest.approx(np.mean(expected), abs=2e-4)
    assert estimate.n == 4 and estimate.ci_low < estimate.value < estimate.ci_high
    assert scores.rows[0].aupimo is None
    # A bootstrap sample with all weights 1 gives the value itself, despite its coarser bins.
    from voxout.evaluation.scoring.voxel_measures import voxel_measures

    once = voxel_measures(scores.subjects, np.ones((3, 8))).measures["aupimo"]
    np.testing.assert_allclose(once.draws, once.value, atol=1e-9)


def test_aupimo_needs_healthy_scans():
    scores = score_cohort([make_big(n, healthy=False)[0] for n in range(4, 7)], SETTINGS)
    assert scores.estimates["aupimo"].reason_undefined == "no healthy scan in this cohort"


# -- lesion criteria, subject-level metrics and strata ---------------------------------------------------------------
def test_precision_and_f1_follow_from_the_counts(cohort):
    scores, made = cohort
    value = {name: estimate.value for name, estimate in scores.estimates.items()}
    threshold, with_lesions = np.array([scores.threshold]), [s for s, _, _ in made[4:]]
    clusters = sum(int(s.clusters.clusters_at(threshold)[0]) for s in with_lesions)
    false = sum(int(s.clusters.false_clusters_at(threshold)[0]) for s in with_lesions)
    lesions = sum(len(s.lesions) for s in with_lesions)
    matched = sum(s.overlaps.matched_at(threshold, len(s.lesions)).sum() for s in with_lesions)
    assert 0 < matched <= sum(s.lesions_found_at(threshold[0]) for s in with_lesions)
    assert value["lesion_precision"] == pytest.approx(1 - false / clusters)
    assert value["lesion_sensitivity_iou10"] == pytest.approx(matched / lesions)
    assert value["lesion_precision_iou10"] == pytest.approx(matched / clusters)
    assert value["lesion_f1_iou10"] == pytest.approx(2 * matched / (clusters + lesions))
    both = value["lesion_sensitivity"], value["lesion_precision"]
    assert value["lesion_f1"] == pytest.approx(2 * both[0] * both[1] / sum(both))
    assert sum(row.lesions_matched or 0 for row in scores.rows) == matched


def test_subject_level_metrics(cohort):
    scores, made = cohort
    with_lesions = [s.has_lesions for s, _, _ in made]
    for number, values in {
        "maximum": [v.max() for _, v, _ in made],
        "p999": [np.quantile(v, 0.999) for _, v, _ in made],
    }.items():
        for name, metric in (
            ("auroc", metrics.roc_auc_score),
            ("average_precision", metrics.average_precision_score),
            ("f1_max", f1_max),
        ):
            estimate = scores.estimates[f"subject_{name}_{number}"]
            assert estimate.value == pytest.approx(metric(with_lesions, values)), number
            assert estimate.n == 9
    # The flagged volume of a healthy scan is measured at its leave-one-out threshold.
    volumes = [s.flagged_ml_at(scores.threshold) for s, _, _ in made]
    for i in range(4):
        others = score_cohort([made[j][0] for j in range(9) if j != i], SETTINGS)
        volumes[i] = made[i][0].flagged_ml_at(others.threshold)
    assert scores.estimates["subject_auroc_volume"].value == pytest.approx(metrics.roc_auc_score(with_lesions, volumes))
    assert scores.estimates["subject_f1_max_volume"].value == pytest.approx(f1_max(with_lesions, volumes))


def f1_max(truth, values):
    """Highest F1 from scikit-learn's precision and recall."""
    precision, recall, _ = metrics.precision_recall_curve(truth, values)
    return max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)


def test_f1_max_of_subjects_and_its_intervals_agree_with_scikit_learn(cohort):
    from voxout.evaluation.metrics.bootstrap import resample_subjects

    scores, made = cohort
    truth, values = np.array([s.has_lesions for s, _, _ in made]), np.array([v.max() for _, v, _ in made])
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s, _, _ in made], 200, 0).astype(int)[1:]
    drawn = [f1_max(np.repeat(truth, weight), np.repeat(values, weight)) for weight in weights]
    estimate = scores.estimates["subject_f1_max_maximum"]
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    voxels, lesion = np.concatenate([v for _, v, _ in made]), np.concatenate([t for _, _, t in made])
    assert scores.estimates["best_dice_pooled"].value == pytest.approx(f1_max(lesion, voxels), abs=1e-9)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        # In descending order: lesion, healthy, lesion, healthy; all four flagged: 2 * 2 / (4 + 2), the third: 4 / 5.
        ([4, 3, 2, 1], 4 / 5),
        # The lesion of the lower score ties with a healthy subject: 2 / 3 for the first alone, 4 / 5 for three.
        ([4, 2, 2, 1], 4 / 5),
        # All tie: everyone is flagged.
        ([2, 2, 2, 2], 2 / 3),
        # Healthy subjects are above those with lesions: the best is to flag all.
        ([1, 3, 1, 4], 2 / 3),
        ([4, 1, 3, 1], 1),
    ],
)
def test_f1_max_of_four_subjects(highest, expected):
    scores = score_cohort([_with_highest(n, peak, healthy=n % 2 == 1) for n, peak in enumerate(highest)], SETTINGS)
    assert scores.estimates["subject_f1_max_maximum"].value == pytest.approx(expected)
    assert scores.estimates["subject_f1_max_maximum"].n == 4


def _with_highest(number, peak, *, healthy):
    """A subject whose map is 0 but for one voxel, a lesion in patients, and NaN outside the brain."""
    values, lesion = np.zeros(GRID.size_vox, np.float32), np.zeros(GRID.size_vox, bool)
    values[5, 5, 5], values[0] = peak, np.nan
    lesion[5, 5, 5] = not healthy
    brain, truth = Volume(~np.isnan(values), GRID), Volume(lesion, GRID)
    group = "control" if healthy else "patient"
    return score_map(f"sub-{number}", Volume(values, GRID), brain, truth, None, SETTINGS, group=group)


def test_the_mean_of_ader_averages_its_seven_metrics_in_every_sample(cohort):
    scores, _ = cohort
    names = ("auroc", "average_precision", "best_dice_pooled", "aupro_fpr30", "subject_auroc_maximum",
             "subject_average_precision_maximum", "subject_f1_max_maximum")  # fmt: skip
    own = scores.measures["ader_mean"]
    assert own.value == pytest.approx(sum(scores.measures[name].value for name in names) / 7)
    assert own.draws == pytest.approx(sum(scores.measures[name].draws for name in names) / 7)


def test_the_metrics_of_subjects_need_both_kinds():
    patients = score_cohort([make(n)[0] for n in range(4)], SETTINGS)
    healthy = score_cohort([make(n, healthy=True)[0] for n in range(4)], SETTINGS)
    for name in ("subject_f1_max_maximum", "ader_mean"):
        assert patients.estimates[name].reason_undefined == "no subject without lesions"
    assert healthy.estimates["subject_f1_max_maximum"].reason_undefined == "no subject with lesions in its lesion mask"
    assert healthy.estimates["ader_mean"].reason_undefined == "no lesion voxel in the evaluation mask"
    assert healthy.estimates["best_dice_one_threshold_per_subject_mean"].reason_undefined
    for name in ("dice_healthy_fpr00169_per_subject_mean", "dice_healthy_fpr01_per_subject_mean"):
        assert patients.estimates[name].reason_undefined == "no healthy scan in this cohort"
        assert healthy.estimates[name].reason_undefined == "no subject with lesions in its lesion mask"


def test_metrics_of_a_stratum_agree_with_those_of_its_subjects():
    from dataclasses import replace

    made = [make(n, healthy=n < 4)[0] for n in range(10)]
    placed = [replace(s, site="Lyon" if n % 2 else "Graz", age=35.0 + 5 * n) for n, s in enumerate(made)]
    scores = score_cohort(placed, SETTINGS)
    strata = {(stratum.by, stratum.name): stratum for stratum in scores.strata}
    alone = score_cohort([s for s in placed if s.site == "Lyon"], SETTINGS, point=None)
    lyon = strata["site", "Lyon"].measures
    for name in ("auroc", "average_precision", "aupro_fpr30", "best_dice_pooled"):
        assert lyon[name].value == pytest.approx(alone.measures[name].value, abs=1e-12)
    with_lesions = [s for s in placed if s.site == "Lyon" and s.has_lesions]
    found = sum(s.lesions_found_at(scores.threshold) for s in with_lesions)
    assert lyon["lesion_sensitivity"].value == pytest.approx(found / sum(len(s.lesions) for s in with_lesions))
    assert [name for by, name in strata if by == "age"] == ["below 40 years", "40 to 60 years", "60 to 75 years",
                                                            "75 years and more"]  # fmt: skip
    assert strata["age", "below 40 years"].measures["auroc"].estimate().reason_undefined, "only healthy subjects"
    by_sex = [s.name for s in score_cohort([replace(s, sex="FM"[n % 2]) for n, s in enumerate(made)], SETTINGS).strata]
    assert by_sex[:2] == ["female", "male"]
    volumes = [stratum.measures["lesion_sensitivity"] for (by, _), stratum in strata.items() if by == "lesion volume"]
    in_mm3 = [les.volume_mm3 for s in placed for les in s.lesions]
    assert [m.n for m in volumes] == [sum(v < 100 for v in in_mm3), sum(v >= 100 for v in in_mm3), 0, 0]
    assert "no lesion of this volume" in volumes[3].estimate().reason_undefined
    assert not [by for by, _ in ((s.by, s.name) for s in score_cohort(made, SETTINGS).strata) if by != "lesion volume"]


def test_a_stored_threshold_is_used_for_a_cohort_without_healthy_scans(tmp_path):
    from voxout.evaluation.scoring.operating_point import StoredPoint

    first = score_cohort([make(n, healthy=n < 4)[0] for n in range(8)], SETTINGS)
    path = tmp_path / "point.json"
    StoredPoint.from_point(first.point, SETTINGS, "model a").save(path)
    stored = StoredPoint.load(path)
    assert stored.unfit_because(SETTINGS, "model a") is None
    assert "an earlier fit" in stored.unfit_because(SETTINGS, "model b")
    other = SETTINGS.model_copy(update={"false_clusters": 3.0})
    assert stored.unfit_because(other, "model a") == "it was set with evaluation.false_clusters 2.0, now 3.0"
    patients = [make(n)[0] for n in range(20, 24)]
    scores = score_cohort(patients, SETTINGS, point=stored.point)
    assert scores.threshold == first.threshold
    assert scores.point.origin == "the model's training controls"
    sensitivity = scores.estimates["lesion_sensitivity"]
    found = sum(s.lesions_found_at(first.threshold) for s in patients)
    assert sensitivity.value == pytest.approx(found / sum(len(s.lesions) for s in patients))
    assert scores.estimates["false_clusters_per_healthy_subject"].reason_undefined == "no healthy scan in this cohort"
    unknown = score_cohort([make(20, lesion_mask=False)[0]], SETTINGS, point=stored.point)
    assert unknown.threshold == first.threshold < unknown.subjects[0].highest_score
    assert scoring_warnings(unknown) == []
    reasons = {name: estimate.reason_undefined for name, estimate in unknown.estimates.items()}
    assert reasons["dice_at_healthy_threshold"] == "no subject with lesions in its lesion mask"
    assert reasons["false_clusters_per_healthy_subject"] == "no healthy scan in this cohort"
    # The uncertainty of the stored threshold is kept.
    ours, theirs = scores.estimates["healthy_threshold"], first.estimates["healthy_threshold"]
    assert (ours.value, ours.ci_low, ours.ci_high) == (theirs.value, theirs.ci_low, theirs.ci_high)
    # Healthy scans are evaluated at this threshold and do not change it.
    healthy = make(1, healthy=True)[0]
    with_own = score_cohort([*patients, healthy, make(2, healthy=True)[0]], SETTINGS, point=stored.point)
    assert with_own.threshold == first.threshold
    assert with_own.row(healthy.key).false_clusters == healthy.clusters.false_clusters_at(first.threshold)
    apart = with_own.estimates["false_clusters_per_healthy_subject"]
    expected = [make(n, healthy=True)[0].clusters.false_clusters_at(first.threshold) for n in (1, 2)]
    assert (apart.value, apart.n) == (pytest.approx(np.mean(expected)), 2)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"point.json\W: format: field required, expected an operating point"):
        StoredPoint.load(path)
    assert StoredPoint.load(tmp_path / "none.json") is None
