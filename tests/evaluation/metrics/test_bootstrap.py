import numpy as np
import pytest
from voxout.evaluation.metrics.bootstrap import Estimate, mean_over_subjects, percentile_interval, resample_subjects


def test_an_estimate_has_a_value_or_a_reason():
    assert Estimate(0.5).reason_undefined is None
    assert Estimate.undefined("no lesion").value is None
    for wrong in ({"value": None}, {"value": 0.5, "reason_undefined": "x"}, {"value": float("nan")}):
        with pytest.raises(ValueError):
            Estimate(**wrong)


def test_resampling_keeps_the_composition_of_the_cohort():
    strata = ["healthy"] * 4 + ["patient"] * 9 + ["healthy"] * 2
    weights = resample_subjects(strata, 500, seed=3)
    assert (weights[0] == 1).all(), "the first row is the cohort itself"
    assert len(weights) == 501
    healthy = np.array([s == "healthy" for s in strata])
    assert (weights[:, healthy].sum(1) == 6).all()
    assert (weights[:, ~healthy].sum(1) == 9).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.2)
    np.testing.assert_array_equal(weights, resample_subjects(strata, 500, seed=3))
    assert (weights != resample_subjects(strata, 500, seed=4)).any()


def test_the_interval_of_a_mean_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(5, 2, size=80)
    weights = resample_subjects(["a"] * 80, 4000, seed=0)
    mean = mean_over_subjects(list(values), weights, why_none="-").estimate()
    half = 1.96 * values.std() / np.sqrt(80)
    assert mean.value == pytest.approx(values.mean())
    assert mean.ci_low == pytest.approx(values.mean() - half, abs=0.08)
    assert mean.ci_high == pytest.approx(values.mean() + half, abs=0.08)
    assert mean.n == 80


def test_subjects_with_undefined_values_are_excluded():
    weights = resample_subjects(["a"] * 5, 50, seed=0)
    mean = mean_over_subjects([1.0, None, 2.0, None, 3.0], weights, why_none="-").estimate()
    assert (mean.value, mean.n) == (2.0, 3)
    assert 1 <= mean.ci_low <= 2 <= mean.ci_high <= 3
    nothing = mean_over_subjects([None] * 5, weights, why_none="no subject has a lesion").estimate()
    assert nothing.reason_undefined == "no subject has a lesion"


def test_no_interval_from_two_subjects_or_mostly_undefined_draws():
    weights = resample_subjects(["a"] * 2, 50, seed=0)
    assert mean_over_subjects([1.0, 2.0], weights, why_none="-").estimate().ci_low is None
    assert percentile_interval(np.array([1.0, np.nan, np.nan])) == (None, None)


def test_a_paired_difference_has_a_narrower_interval():
    random = np.random.default_rng(1)
    ability = random.normal(0.6, 0.2, size=40)
    weights = resample_subjects(["a"] * 40, 800, seed=0)
    one = mean_over_subjects(list(ability), weights, why_none="-")
    other = mean_over_subjects(list(ability - 0.03 + random.normal(0, 0.01, size=40)), weights, why_none="-")
    difference = one.minus(other).estimate()
    assert difference.value == pytest.approx(0.03, abs=0.01)
    assert 0 < difference.ci_low < difference.ci_high < 0.05
    assert one.estimate().ci_low < other.value, "unpaired intervals overlap"
    nothing = mean_over_subjects([None] * 40, weights, why_none="no subject has a lesion")
    assert one.minus(nothing).estimate().reason_undefined == "no subject has a lesion"
