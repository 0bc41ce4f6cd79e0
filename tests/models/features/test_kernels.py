"""Compiled kernels of whitening, against numpy."""

import numpy as np
import pytest
from voxout.models.features import kernels


@pytest.mark.parametrize(("d", "n"), [(1, 3), (3, 8), (16, 21)])
def test_factors_are_the_inverses_of_choleskys(d, n):
    """For numbers of voxels that fill the lanes and that do not; NaN only where there is no factor."""
    random = np.random.default_rng(d)
    roots = random.normal(size=(n, d, d))
    covariance = roots @ roots.transpose(0, 2, 1)
    covariance[1] = -np.eye(d)
    rows, columns = np.tril_indices(d)
    found = np.empty((n, len(rows)), np.float32)
    kernels.inverse_factors(np.ascontiguousarray(covariance[:, rows, columns]), 0.1, found)
    assert np.isnan(found[1]).any()
    good = np.delete(np.arange(n), 1)
    expected = np.linalg.inv(np.linalg.cholesky(covariance[good] + 0.1 * np.eye(d)))[:, rows, columns]
    np.testing.assert_allclose(found[good], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
def test_covariances_are_mixed_with_that_of_the_brain(diagonal):
    random = np.random.default_rng(0)
    rows, columns = np.tril_indices(4)
    own, brain = random.random((6, 10)).astype(np.float32), random.random(10)
    variance = brain[rows == columns].mean()
    found = np.empty((6, 10))
    kernels.regularised(own, brain, variance, 0.3, diagonal, found)
    scale = own[:, rows == columns].mean(axis=1, keepdims=True) / variance
    expected = 0.7 * own + 0.3 * scale * brain
    if diagonal:
        expected[:, rows != columns] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("k", [0, 2, 5])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_residuals_of_some_subjects_are_whitened(count, k):
    """For one subject, and for numbers of subjects and confounds that fill vectors and that do not."""
    random = np.random.default_rng(0)
    d, n, start = 6, 11, 2  # voxels 2 to 13 of 15
    values, out = random.normal(size=(40, 15, d)).astype(np.float32), np.zeros((count, 15, d), np.float32)
    subjects = random.permutation(40)[:count]
    confounds, slopes, mean, packed = (
        random.normal(size=shape).astype(np.float32) for shape in ((k, count), (k, n, d), (n, d), (n, d * (d + 1) // 2))
    )
    kernels.whiten(values, subjects, start, confounds, slopes, mean, packed, out)
    factor = np.zeros((n, d, d))
    rows, columns = np.tril_indices(d)
    factor[:, rows, columns] = packed
    residuals = values[subjects, start : start + n] - mean - np.einsum("kpi,ks->spi", slopes, confounds)
    np.testing.assert_allclose(out[:, start : start + n], np.einsum("pij,spj->spi", factor, residuals), atol=1e-4)
    assert (out[:, :start] == 0).all() and (out[:, start + n :] == 0).all()
