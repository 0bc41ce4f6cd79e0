"""Curvatures, against the definition and numpy."""

import numpy as np
from scipy import ndimage
from voxout.models.learned.sheets import curvatures, eigenvalues


def test_eigenvalues_are_those_of_numpy():
    random = np.random.default_rng(0)
    matrices = random.normal(size=(2000, 3, 3)) * np.exp(random.uniform(-8, 8, (2000, 1, 1)))
    matrices += matrices.transpose(0, 2, 1)
    special = [np.zeros((3, 3)), np.eye(3), np.diag([1.0, 1.0, -2.0]), np.ones((3, 3)), np.diag([5.0, 0, 0])]
    matrices = np.concatenate([matrices, special])
    found = eigenvalues(*(matrices[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))))
    expected = np.linalg.eigvalsh(matrices)
    scale = 1e-12 + np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack(found, axis=1) / scale, expected / scale, atol=1e-7)


def test_a_sheet_curves_along_one_direction_and_a_blob_along_three():
    x, y, z = np.indices((31, 31, 31)) - 15
    index = np.array([np.ravel_multi_index((15, 15, 15), (31, 31, 31))])
    for tilt in (0, 0.7):  # along an axis, and oblique
        sheet = ndimage.gaussian_filter(-(np.abs(x + tilt * y) < 2).astype(np.float32), 2)
        one = curvatures(sheet, (2, 2, 2), index)[:3, 0]
        assert one[2] > 0
        assert np.abs(one[:2]).max() < 0.05 * one[2]
    blob = ndimage.gaussian_filter(-((x**2 + y**2 + z**2) < 9).astype(np.float32), 2)
    three = curvatures(blob, (2, 2, 2), index)[:3, 0]
    assert three[0] > 0.98 * three[2] > 0


def test_curvatures_are_per_mm_whatever_the_voxels():
    """The same function, sampled at 1 x 2 x 3 mm; the voxel lies off the middle."""
    x, y, z = np.indices((21, 21, 21)) * np.array([1.0, 2.0, 3.0])[:, None, None, None]
    volume = 0.5 * (0.3 * x**2 - 0.2 * y**2 + 0.1 * z**2)
    index = np.array([np.ravel_multi_index((4, 7, 9), volume.shape)])
    slope = np.linalg.norm([0.3 * 4, 0.2 * 14, 0.1 * 27])
    np.testing.assert_allclose(curvatures(volume, (1, 2, 3), index)[:, 0], [-0.2, 0.1, 0.3, slope], rtol=1e-5)


def test_curvatures_are_those_of_numpys_gradients_also_at_the_edges():
    random = np.random.default_rng(1)
    volume, spacing_mm = random.normal(size=(5, 2, 7)).astype(np.float32), (1.0, 2.0, 0.5)
    index = random.permutation(volume.size)
    found = curvatures(volume, spacing_mm, index)
    slopes = np.gradient(volume, *spacing_mm)
    hessian = [[np.gradient(slopes[a], spacing_mm[b], axis=b).ravel()[index] for b in range(3)] for a in range(3)]
    lower = np.tril(np.transpose(hessian, (2, 1, 0)))  # of xy and yx, the slope of the slope along x
    expected = np.linalg.eigvalsh(lower)
    np.testing.assert_allclose(found[:3].T, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found[3], np.linalg.norm(slopes, axis=0).ravel()[index], rtol=1e-5)
