import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from voxout.evaluation.metrics.fdr import Discovery, log_p, log_q

SCORES = st.lists(st.floats(-8, 30, width=32), min_size=1, max_size=60).map(np.array)


def test_p_is_the_upper_tail_for_extreme_scores():
    np.testing.assert_allclose(10 ** -log_p(np.array([-2.0, 0.0, 3.09])), stats.norm.sf([-2.0, 0.0, 3.09]))
    assert log_p(np.array([100.0]))[0] == pytest.approx(-stats.norm.logsf(100.0) / np.log(10))


@settings(deadline=None)
@given(SCORES)
def test_q_agrees_with_scipy(z):
    expected = stats.false_discovery_control(stats.norm.sf(z), method="bh")
    np.testing.assert_allclose(10 ** -log_q(z), expected, rtol=1e-6, atol=1e-300)


@settings(deadline=None)
@given(SCORES, st.integers(2, 8))
def test_q_is_invariant_to_splitting_voxels(z, pieces):
    """A finer grid does not change which voxels survive."""
    np.testing.assert_allclose(log_q(np.repeat(z, pieces)), np.repeat(log_q(z), pieces), atol=1e-9)


@settings(deadline=None)
@given(SCORES)
def test_the_threshold_is_the_lowest_score_that_survives(z):
    found = Discovery.from_z(z)
    survive = log_q(z) >= -np.log10(0.05)
    if found.threshold is None:
        assert not survive.any()
    else:
        np.testing.assert_array_equal(survive, z >= found.threshold)


def test_known_p_values():
    """Four p-values, .01, .02, .03 and .5: q is .04, .04, .04, .5."""
    z = stats.norm.isf([0.5, 0.03, 0.01, 0.02])
    np.testing.assert_allclose(10 ** -log_q(z), [0.5, 0.04, 0.04, 0.04])
    assert Discovery.from_z(z).threshold == pytest.approx(stats.norm.isf(0.03))
    # With .04 in place of .03, the lowest q is .053.
    assert Discovery.from_z(stats.norm.isf([0.5, 0.04, 0.02, 0.03])) == Discovery(0.05, None)


def test_the_false_discovery_rate_is_controlled():
    random = np.random.default_rng(0)
    called = [Discovery.from_z(random.normal(size=2000)).threshold is not None for _ in range(400)]
    assert np.mean(called) == pytest.approx(0.05, abs=0.035)
    shares = []
    for _ in range(100):
        z = random.normal(size=2000)
        z[:100] += 4
        found = z >= Discovery.from_z(z).threshold
        shares.append(found[100:].sum() / found.sum())
    assert np.mean(shares) == pytest.approx(0.05 * 0.95, abs=0.01)
