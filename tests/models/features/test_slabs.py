"""Sums over neighbours, against scipy."""

import numpy as np
import pytest
from scipy import ndimage
from voxout.models.features.slabs import sum_over_neighbours


@pytest.mark.parametrize("columns", [1, 16, 37])
def test_sums_over_neighbours_are_those_of_a_convolution(columns):
    random = np.random.default_rng(0)
    brain = random.random((5, 6, 4)) < 0.6
    voxels = np.argwhere(brain) + np.array([3, 0, 7])  # somewhere in a grid
    values = random.normal(size=(len(voxels), columns)).astype(np.float32)
    volume = np.zeros((*brain.shape, columns))
    volume[brain] = values
    expected = ndimage.convolve(volume, np.ones((3, 3, 3, 1)), mode="constant")[brain]
    np.testing.assert_allclose(sum_over_neighbours(values, voxels), expected, atol=1e-5)
    inner = slice(4, 20)
    np.testing.assert_array_equal(
        sum_over_neighbours(values, voxels, inner), sum_over_neighbours(values, voxels)[inner]
    )
