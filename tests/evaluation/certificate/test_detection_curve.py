"""Curves of detection: known parameters, intervals that cover the truth, limits, places."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from voxout.evaluation.certificate.detection_curve import DetectionCurve, design, expit, fit_logistic, shifts
from voxout.evaluation.metrics.bootstrap import percentile_interval, resample_subjects

TRUTH = np.array([0.6, 1.4, 1.1, 0.2])
USUAL = 0.5
SIZES_ML = (0.03, 10.0)


def lesions(random, number: int):
    ml, strength = (np.exp(random.uniform(np.log(low), np.log(high), number)) for low, high in (SIZES_ML, (0.25, 1.5)))
    return ml, strength


def drawn(random, heads: int, each: int, sd: float = 0.0):
    """Lesions in heads of which some are easier than others: size, strength, found, head."""
    ml, strength = lesions(random, heads * each)
    head = np.repeat(np.arange(heads), each)
    logit = design(ml, strength, USUAL) @ TRUTH + random.normal(0, sd, heads)[head]
    return ml, strength, random.random(len(ml)) < expit(logit), head


def fitted(ml, strength, found, head, draws: int, seed: int = 0) -> DetectionCurve:
    heads = int(head.max()) + 1
    weights = resample_subjects([""] * heads, draws, seed)[:, head]
    return DetectionCurve.fit(ml, strength, found, weights, usual=USUAL, sizes_ml=SIZES_ML, participants=heads)


def test_known_parameters_are_found():
    random = np.random.default_rng(0)
    ml, strength, found, _ = drawn(random, 1, 40_000)
    np.testing.assert_allclose(fit_logistic(design(ml, strength, USUAL), found, np.ones(len(ml))), TRUTH, atol=0.06)


def test_the_fit_is_that_of_scikit_learn_with_weights(monkeypatch):
    monkeypatch.setattr("voxout.evaluation.certificate.detection_curve._PENALTY", np.zeros(4))
    random = np.random.default_rng(1)
    ml, strength, found, _ = drawn(random, 1, 500)
    weights, terms = random.integers(0, 4, len(ml)).astype(float), design(ml, strength, USUAL)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(terms, found, sample_weight=weights)
    np.testing.assert_allclose(fit_logistic(terms, found, weights), theirs.coef_[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("answer", [True, False])
def test_a_curve_stays_finite_if_all_are_found_or_none(answer):
    ml, strength = lesions(np.random.default_rng(2), 60)
    curve = fitted(ml, strength, np.full(60, answer), np.arange(60) % 4, 10)
    assert np.isfinite(curve.coefficients).all()
    limit = curve.limit(0.5, USUAL).estimate()
    assert limit.value == (0.03 if answer else 10.0)


def test_the_limit_is_where_the_curve_has_the_share():
    curve = fitted(*drawn(np.random.default_rng(3), 4, 200), 20)
    for share, strength in ((0.5, 0.5), (0.8, 0.3), (0.2, 1.0)):
        sizes = curve.limits_ml(share, strength)
        p = curve.probability(sizes, np.full(len(sizes), strength))
        np.testing.assert_allclose(np.diag(p), share, atol=1e-9)
    truth = DetectionCurve(USUAL, TRUTH[None], *SIZES_ML, 0, 1)
    assert truth.limits_ml(0.5, USUAL)[0] == pytest.approx(np.exp(-0.6 / 1.4))
    assert truth.limits_ml(0.5, USUAL, -1.4)[0] == pytest.approx(np.e * np.exp(-0.6 / 1.4))
    falling = DetectionCurve(USUAL, np.array([[0.0, -1.0, 1.0, 0.0]]), *SIZES_ML, 0, 1)
    assert np.isinf(falling.limits_ml(0.5, USUAL)[0])


def test_intervals_over_heads_cover_the_truth():
    """Of the marginal curve, where the heads differ; an interval over lesions would be too narrow."""
    random = np.random.default_rng(4)
    many = drawn(random, 4000, 10, sd=0.8)
    truth = fitted(*many[:3], np.zeros(len(many[0]), int), 0).limits_ml(0.5, USUAL)[0]
    covered = alone = 0
    for seed in range(100):
        ml, strength, found, head = drawn(random, 20, 40, sd=0.8)
        low, high = percentile_interval(fitted(ml, strength, found, head, 120, seed).limits_ml(0.5, USUAL)[1:])
        covered += low <= truth <= high
        low, high = percentile_interval(
            fitted(ml, strength, found, np.arange(len(ml)), 120, seed).limits_ml(0.5, USUAL)[1:]
        )
        alone += low <= truth <= high
    # 95 % of the time; percentile intervals over 20 heads are a little narrow.
    assert 85 <= covered <= 99 and alone < covered


def test_places_are_shifted_by_what_is_found_there_and_towards_zero_where_little_is_known():
    random = np.random.default_rng(5)
    ml, strength = lesions(random, 2000)
    logits = design(ml, strength, USUAL) @ TRUTH
    there = np.arange(2000) < 1000
    found = random.random(2000) < expit(logits + np.where(there, -1.5, 0.0))
    few = np.zeros(2000)
    few[:3] = 1
    shift = shifts(logits, found, np.stack([there, ~there, few, np.zeros(2000)]).astype(float))
    assert shift[0] == pytest.approx(-1.5, abs=0.25) and shift[1] == pytest.approx(0, abs=0.25)
    assert abs(shift[2]) < 1.5 and shift[3] == 0
