"""Voxel-wise linear confound regression.

At each voxel, every feature is regressed on the confounds of the controls that have the feature (ridge regression). The
slopes are averaged over the 3x3x3 neighbours. Residuals are the features minus slopes times confounds. Confounds are
centred: features of a subject at the controls' mean, or with missing covariates, do not change.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.feature_store import LatentStore
from ..features.whitening import sum_over_neighbours
from ..ocsvm.blocks import as_floats, read_block
from ..tensor_file import opened_tensors, write_tensors

_RIDGE = 5.0
"""Ridge penalty, equivalent to five more controls that show no effect."""
_VOXELS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class ConfoundRegression:
    """Linear regression of the features on the confounds, at each voxel.

    Attributes
    ----------
    slopes : ndarray, (k, P, d), float16
        Change of the features per unit of each confound.
    """

    slopes: np.ndarray

    def residualise(self, features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
        """Regress the confounds (k,) of one subject out of its features (P, d); float32."""
        return self.residualise_block(features[None], confounds[None])[0]

    def residualise_block(self, features: np.ndarray, confounds: np.ndarray, start: int = 0) -> np.ndarray:
        """Regress the confounds (S, k) of subjects out of their features (S, n, d) at the voxels from `start`."""
        residuals = features.astype(np.float32, order="C")
        for a in range(0, residuals.shape[1], _VOXELS_AT_ONCE):
            block = slice(a, min(a + _VOXELS_AT_ONCE, residuals.shape[1]))
            slopes = as_floats(self.slopes[:, start + block.start : start + block.stop])
            # The product is subtracted in place; `view` never copies.
            flat = torch.from_numpy(residuals[:, block]).view(len(residuals), -1)
            flat.addmm_(torch.from_numpy(confounds.astype(np.float32)), torch.from_numpy(slopes).flatten(1), alpha=-1)
        return residuals

    @classmethod
    def fit(cls, latents: LatentStore | np.ndarray, confounds: np.ndarray, mask: VoxelMask) -> "ConfoundRegression":
        """Fit the slopes on the controls.

        Parameters
        ----------
        latents : (S, P, d)
            Features of the controls; read in blocks. All NaN at voxels where a control is missing.
        confounds : ndarray, (S, k)
        mask : VoxelMask
        """
        _, n_voxels, dimension = latents.shape
        size = confounds.shape[1]
        # Centre again, since these may be a subset of the training controls.
        centred = confounds - confounds.mean(axis=0)
        weights = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(size), centred.T).astype(np.float32)
        slopes = np.empty((size, n_voxels, dimension), np.float32)
        for a in range(0, n_voxels, _VOXELS_AT_ONCE):
            b = min(a + _VOXELS_AT_ONCE, n_voxels)
            features = read_block(latents, a, b)
            slopes[:, a:b] = np.tensordot(weights, features, axes=1)
            incomplete = np.flatnonzero(np.isnan(features[..., 0]).any(axis=0))
            slopes[:, a + incomplete] = _slopes_with_missing(features[:, incomplete], centred)
        n_neighbours = sum_over_neighbours(np.ones((n_voxels, 1), np.float32), mask.locations)
        for slope in slopes:
            slope[:] = sum_over_neighbours(slope, mask.locations) / n_neighbours
        return cls(slopes.astype(np.float16))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        return write_tensors(path, {"slopes": self.slopes})

    @classmethod
    def load(cls, path: Path) -> "ConfoundRegression":
        """Load a saved regression.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        with opened_tensors(path, "slopes of confounds") as file:
            return cls(file.array("slopes", "float16", 3))


def _slopes_with_missing(features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
    """Slopes (k, n, d) at voxels where some controls are missing in the features (S, n, d): one regression a voxel."""
    available = np.isfinite(features[..., 0]).T  # (n, S)
    mean = available @ confounds / available.sum(axis=1, keepdims=True)
    centred = (confounds - mean[:, None]) * available[..., None]  # (n, S, k)
    products = centred.swapaxes(1, 2) @ np.nan_to_num(features).swapaxes(0, 1)
    normal = centred.swapaxes(1, 2) @ centred + _RIDGE * np.eye(confounds.shape[1])
    return np.linalg.solve(normal, products).swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class ResidualisedLatents:
    """Features whose blocks are residualised as they are read.

    Attributes
    ----------
    latents : LatentStore or ndarray, (S, P, d)
    regression : ConfoundRegression
    confounds : ndarray, (S, k)
    """

    latents: LatentStore | np.ndarray
    regression: ConfoundRegression
    confounds: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        subjects, voxels, size = self.latents.shape
        return subjects, voxels, size

    @property
    def mask_hash(self) -> str:
        """Hash of the `VoxelMask` of a latent store; arrays have no such attribute."""
        return self.latents.mask_hash  # type: ignore[union-attr]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``, (S, b - a, d) float32."""
        start, _, _ = index[1].indices(self.shape[1])
        return self.regression.residualise_block(self.latents[index], self.confounds, start)


def residualised(
    latents: LatentStore | np.ndarray, confounds: np.ndarray, mask: VoxelMask
) -> tuple[Any, ConfoundRegression | None]:
    """Regress the confounds (S, k) of the controls out of their features (S, P, d); without confounds, do nothing.

    Returns
    -------
    (S, P, d)
        The features, or their residuals, computed as they are read.
    ConfoundRegression or None
    """
    if not confounds.shape[1]:
        return latents, None
    regression = ConfoundRegression.fit(latents, confounds, mask)
    return ResidualisedLatents(latents, regression, confounds), regression
