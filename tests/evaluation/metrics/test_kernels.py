"""Compiled kernels against numpy and scipy, and their guaranteed properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from voxout.evaluation.metrics import kernels
from voxout.evaluation.metrics.components import neighbour_steps

NUMBERS = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False))


@settings(max_examples=200, deadline=None)
@given(NUMBERS)
def test_numbers_are_sorted(values):
    ordered, places = kernels.sorted_order(values, True)
    np.testing.assert_array_equal(ordered, np.sort(values))
    np.testing.assert_array_equal(values[places], ordered)
    np.testing.assert_array_equal(np.sort(places), np.arange(len(values)))
    alone, none = kernels.sorted_order(values, False)
    np.testing.assert_array_equal(alone, ordered)
    assert len(none) == 0


def test_zero_and_minus_zero_are_one_score():
    ordered, places = kernels.sorted_order(np.array([0.0, -0.0, 1, -0.0], np.float32), True)
    values, counts, sums = kernels.distinct(ordered, places, np.array([1.0, 2, 3, 4]))
    assert values.tolist() == [0, 1] and counts.tolist() == [3, 1] and sums.tolist() == [7, 3]


@pytest.mark.parametrize("seed", range(20))
def test_bins_of_shared_ranks_have_the_guaranteed_sizes(seed):
    random = np.random.default_rng(seed)
    kept = int(random.integers(1, 60))
    ordered = np.sort(np.round(random.standard_normal(5000) * random.choice([5, 100, 1e5])).astype(np.float32))
    dividers = np.unique(random.choice(ordered, 5).astype(np.float32) + random.integers(0, 2, 5).astype(np.float32) / 2)
    values, counts = kernels.counted_by_rank(ordered, dividers, kept)
    assert (np.diff(values) > 0).all() and counts.sum() == len(ordered)
    ends = np.cumsum(counts)
    starts = ends - counts
    lowest, highest = ordered[starts], ordered[ends - 1]
    assert ((lowest <= values) & (values <= highest)).all()
    assert (lowest[1:] > highest[:-1]).all(), "a score is never in two bins"
    shared = lowest < highest
    assert (counts[shared] <= (len(ordered) - ends[shared]) / kept).all()
    assert not shared[len(ordered) - starts <= kept].any(), "the highest scores have their own bins"
    for divider in dividers:
        across = (lowest <= divider) & (highest >= divider)
        assert not (across & shared).any()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
def test_components_agree_with_scipy(density):
    mask = np.random.default_rng(int(100 * density)).random((13, 11, 12)) < density
    framed = np.pad(mask, 1)
    steps = neighbour_steps(framed.shape)
    labels, sizes = kernels.label_components(framed.ravel(), steps[steps < 0])
    expected, number = ndimage.label(framed, structure=np.ones((3, 3, 3)))
    np.testing.assert_array_equal(labels.reshape(framed.shape), expected)
    np.testing.assert_array_equal(sizes, np.append(0, np.bincount(expected.ravel())[1:]))
    assert len(sizes) == number + 1
