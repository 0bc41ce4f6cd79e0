"""The paired test of random signs, against scipy and by laws."""

import numpy as np
import pytest
from scipy import stats
from voxout.evaluation.metrics.sign_flips import DRAWN, MOST_ENUMERATED, sign_flip_p


@pytest.mark.parametrize("n", [2, 5, 9, MOST_ENUMERATED])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_all_signs_agree_with_scipy(n, shift):
    differences = np.random.default_rng(n).normal(shift, 1, n)
    theirs = stats.permutation_test(
        (differences, np.zeros(n)),
        lambda one, other: np.mean(one - other),
        permutation_type="samples",
        n_resamples=10**5,
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_drawn_signs_agree_with_a_normal_approximation():
    differences = np.random.default_rng(0).normal(0.1, 1, 200)
    z = differences.sum() / np.sqrt((differences**2).sum())
    p = 2 * stats.norm.sf(abs(z))
    assert sign_flip_p(differences) == pytest.approx(p, abs=4 * np.sqrt(p / DRAWN) + 0.005)
    assert sign_flip_p(differences, seed=1) != sign_flip_p(differences), "signs are drawn"
    assert sign_flip_p(np.ones(40)) == 1 / (1 + DRAWN)


def test_laws():
    random = np.random.default_rng(3)
    differences = random.normal(0.5, 1, 10)
    p = sign_flip_p(differences)
    assert (
        sign_flip_p(-differences) == sign_flip_p(7 * differences) == sign_flip_p(random.permutation(differences)) == p
    )
    assert sign_flip_p([*differences, 0, 0]) == p, "a subject without a difference tells nothing"
    assert sign_flip_p([]) == sign_flip_p([0.0]) == 1
    assert sign_flip_p([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_p([0.1, -0.1, 0.1, -0.1]) == 1


def test_sessions_of_a_participant_change_sign_together():
    each = [0.5, 0.4, -0.1, 0.3]
    assert sign_flip_p([*each, 0.5], [0, 1, 2, 3, 0]) == sign_flip_p([1.0, 0.4, -0.1, 0.3])


def test_p_is_uniform_if_neither_method_is_better():
    random = np.random.default_rng(4)
    p = np.array([sign_flip_p(random.standard_t(2, 8)) for _ in range(2000)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) <= level + 3 * np.sqrt(level * (1 - level) / 2000)
        assert np.mean(p <= level) >= level - 0.02
