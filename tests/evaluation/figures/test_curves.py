import numpy as np
import pytest
from voxout.evaluation.figures.curves import FROC_GRID, GRID, PRO_GRID, cohort_curves
from voxout.evaluation.metrics import voxel_metrics as vm
from voxout.evaluation.metrics.bootstrap import resample_subjects
from voxout.evaluation.metrics.lesion_metrics import froc_curve
from voxout.evaluation.scoring.score_cohort import score_cohort

from ..scoring.test_score_cohort import SETTINGS, make


@pytest.fixture(scope="module")
def cohort():
    made = [make(n, healthy=n < 4) for n in range(9)]
    return score_cohort([s for s, _, _ in made], SETTINGS), made


def test_the_pro_curve_is_the_mean_recall_of_lesions(cohort):
    scores, made = cohort
    fpr, overlap = vm.pro_curve(scores.counts)
    from skimage import measure

    values = [v for _, v, _ in made]
    truths = [t for _, _, t in made]
    healthy = np.concatenate([v[~t] for v, t in zip(values, truths, strict=True)])
    for threshold in (0.5, 1.5, 3.0):
        shares = []
        for v, t in zip(values, truths, strict=True):
            labels = measure.label(t.reshape(14, 14, 14), connectivity=3).ravel()
            shares += [(v[labels == k] >= threshold).mean() for k in range(1, labels.max() + 1)]
        slow = (healthy >= threshold).mean()
        assert np.interp(slow, fpr, overlap) == pytest.approx(np.mean(shares), abs=0.01)
    area = np.trapezoid(np.interp(PRO_GRID, fpr, overlap), PRO_GRID) / 0.3
    assert area == pytest.approx(scores.estimates["aupro_fpr30"].value, abs=0.01)


def test_bands_agree_with_explicit_resampling(cohort):
    scores, made = cohort
    curves = cohort_curves(scores)
    subjects = [s for s, _, _ in made]
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s in subjects], SETTINGS.bootstrap_draws, 0)[1:]
    roc, froc = [], []
    for weight in weights:
        again = np.repeat(np.arange(len(subjects)), weight.astype(int))
        drawn = [subjects[i].histogram for i in again]
        counts = vm.rank_counts(drawn, vm.common_edges([histogram.lesion_scores for histogram in drawn]))
        roc.append(np.interp(GRID, *vm.roc_curve(counts)))
        rates, found = froc_curve(
            [subjects[i].clusters.false_cluster_thresholds for i in again], [subjects[i].found_at for i in again]
        )
        froc.append(found[np.searchsorted(rates, FROC_GRID + 1e-9, side="right") - 1])
    low, high = np.quantile(roc, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curves.roc.low, low, atol=1e-9)
    np.testing.assert_allclose(curves.roc.high, high, atol=1e-9)
    low, high = np.quantile(froc, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curves.froc.low, low, atol=1e-9)
    np.testing.assert_allclose(curves.froc.high, high, atol=1e-9)


def test_curves_lie_mostly_inside_their_bands(cohort):
    curves = cohort_curves(cohort[0])
    for curve in (curves.roc, curves.precision_recall, curves.pro):
        middle = np.interp(curve.at, curve.x, curve.y)
        assert ((curve.low <= middle + 1e-9) & (middle <= curve.high + 1e-9)).mean() > 0.9


def test_too_few_subjects_have_no_band_and_none_no_curve():
    few = cohort_curves(score_cohort([make(n, healthy=n < 3)[0] for n in range(5)], SETTINGS))
    assert few.roc is not None and few.roc.low is None and few.froc.high is None
    none = cohort_curves(score_cohort([make(n, healthy=True)[0] for n in range(3)], SETTINGS))
    assert [none.roc, none.precision_recall, none.pro, none.froc] == [None] * 4
