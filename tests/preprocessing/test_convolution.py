import numpy as np
import pytest
from scipy import ndimage
from voxout.preprocessing.convolution import convolved, gaussian_kernel


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [2, 5, 8, 14])
@pytest.mark.parametrize("shape", [(5, 9, 4), (2, 3, 6, 7, 8), (1, 1, 1), (1, 40, 31)])
def test_agrees_with_scipy(shape, length, dtype):
    """Sums and matrix products; also with kernels longer than the volume, and with volumes that are not contiguous."""
    random = np.random.default_rng(0)
    volumes = random.normal(size=shape[::-1]).astype(dtype).T
    halves = [random.random(length) for length in (2, length, length)]
    kernels = [np.concatenate([half[:0:-1], half]) / (2 * half.sum() - half[0]) for half in halves]
    expected = volumes.astype(np.float64)
    for axis, kernel in enumerate(kernels, start=len(shape) - 3):
        expected = ndimage.correlate1d(expected, kernel, axis, mode="constant")
    found = convolved(volumes, kernels)
    assert found.dtype == dtype and found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma_vox", [0.0, 0.4, 1.0, 7.3])
def test_gaussian_kernel_is_that_of_scipy(sigma_vox):
    point = np.zeros(101)
    point[50] = 1
    kernel = gaussian_kernel(sigma_vox, 3.0)
    reach = len(kernel) // 2
    expected = ndimage.gaussian_filter1d(point, sigma_vox, truncate=3.0) if sigma_vox else point
    np.testing.assert_allclose(kernel, expected[50 - reach : 51 + reach], atol=1e-12)
    assert kernel.sum() == pytest.approx(1)
