"""Separable convolution of volumes.

A narrow kernel is summed along an axis by compiled code. For a wide one, the convolution along an axis is the product
with a banded matrix, which takes the same time for kernels of any length.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import toeplitz

from .convolution_kernels import along_last_axis, along_middle_axis

_WIDE = 0.5
"""Length of a kernel, as a share of that of the axis, from which the matrix product is faster."""


def gaussian_kernel(sigma_vox: float, truncate: float = 4.0) -> np.ndarray:
    """Gaussian sampled at voxel centres, up to `truncate` standard deviations; odd length, sum 1."""
    reach = int(truncate * sigma_vox + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma_vox, 1e-9)) ** 2)
    return weights / weights.sum()


def convolved(volumes: np.ndarray, kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Convolve volumes with a symmetric kernel along each axis; voxels beyond the edges count as 0.

    Parameters
    ----------
    volumes : ndarray, (..., X, Y, Z), float32 or float64
    kernels : sequence of three ndarray
        Symmetric, of odd length; one for each axis.

    Returns
    -------
    ndarray, (..., X, Y, Z)
        Of the type of `volumes`.
    """
    values = np.ascontiguousarray(volumes)
    for axis, kernel in enumerate(kernels, start=volumes.ndim - 3):
        size = volumes.shape[axis]
        # Values before, along and after the axis.
        values = values.reshape(-1, size, int(np.prod(volumes.shape[axis + 1 :])))
        along = _multiplied if len(kernel) > _WIDE * size else _summed
        values = along(values, kernel[len(kernel) // 2 :].astype(values.dtype))
    return values.reshape(volumes.shape)


def _summed(values: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Convolve along the middle axis with a symmetric kernel, given from its centre on: (a, n, b)."""
    out = np.empty_like(values)
    if values.shape[2] == 1:
        along_last_axis(values[:, :, 0], half, out[:, :, 0])
    else:
        along_middle_axis(values, half, out)
    return out


def _multiplied(values: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Do the same as `_summed`."""
    size = values.shape[1]
    column = np.zeros(max(size, len(half)), values.dtype)
    column[: len(half)] = half
    band = torch.from_numpy(toeplitz(column[:size]))
    if values.shape[2] == 1:
        return (torch.from_numpy(values[:, :, 0]) @ band).numpy()
    return (band @ torch.from_numpy(values)).numpy()
