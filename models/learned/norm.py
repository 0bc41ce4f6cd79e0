"""How far a voxel's channels are from those of the controls."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..features.whitening import Whitening
from ..ocsvm.blocks import as_floats
from . import kernels

_VOXELS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class Norm:
    """Mean and covariance of the controls' channels at each voxel.

    Attributes
    ----------
    whitening : Whitening
    """

    whitening: Whitening

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel, (P, C) float32."""
        return self.whitening.mean

    @cached_property
    def sd(self) -> np.ndarray:
        """Standard deviation of each channel, (P, C) float32."""
        sd = np.empty(self.mean.shape, np.float32)
        for start in range(0, len(sd), _VOXELS_AT_ONCE):
            block = slice(start, start + _VOXELS_AT_ONCE)
            factor = torch.from_numpy(self.whitening.factor(start, min(start + _VOXELS_AT_ONCE, len(sd))))
            # The factor is the inverse of the covariance's Cholesky factor, whose rows have the lengths of the SDs.
            cholesky = torch.linalg.solve_triangular(factor, torch.eye(factor.shape[1]), upper=False)
            sd[block] = torch.linalg.vector_norm(cholesky, dim=2).numpy()
        return sd

    def deviations(self, features: np.ndarray) -> np.ndarray:
        """Return signed z-scores of the channels and, last, the Mahalanobis distance of all channels.

        Parameters
        ----------
        features : ndarray, (P, C)
            Channels of one subject, without the effect of the confounds.

        Returns
        -------
        ndarray, (P, C + 1), float32
            The distance is divided by the square root of C.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.shape != self.mean.shape:
            raise ValueError(f"channels {features.shape}, expected {self.mean.shape}")
        out = np.empty((len(features), features.shape[1] + 1), np.float32)
        for start in range(0, len(features), _VOXELS_AT_ONCE):
            block = slice(start, start + _VOXELS_AT_ONCE)
            packed = as_floats(self.whitening.packed[block])
            packed /= np.float32(self.whitening.unit)
            kernels.deviations(features[block], self.mean[block], self.sd[block], packed, out[block])
        return out
