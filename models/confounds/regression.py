"""Features without what age, sex, site or the whole brain explain of them: a straight line at every location.

At each location, ridge regression of every feature on the nuisances of the controls that are there; the slopes are
averaged over the 3x3x3 neighbours. What is taken off is the slope times a person's nuisances, which are centred: a
person of the controls' mean, or of whom nothing is known, is left as found.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.feature_store import LatentStore
from ..features.whitening import sum_over_neighbours
from ..tensor_file import opened_tensors, write_tensors

_RIDGE = 5.0
"""As many controls' worth of no effect."""
_LOCATIONS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class ConfoundRegression:
    """Slopes at each location.

    Attributes
    ----------
    slopes : ndarray, (k, P, d), float16
        Change of the features with one unit of each nuisance.
    """

    slopes: np.ndarray

    def residualise(self, features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
        """Features (P, d) of one person with `confounds` (k,) as they would be at the controls' mean; float32."""
        return self.residualise_block(features[None], confounds[None])[0]

    def residualise_block(self, features: np.ndarray, confounds: np.ndarray, start: int = 0) -> np.ndarray:
        """The same of several people, (S, n, d), at the locations from `start` on; `confounds` (S, k)."""
        left = features.astype(np.float32)
        for a in range(0, left.shape[1], _LOCATIONS_AT_ONCE):
            here = slice(a, min(a + _LOCATIONS_AT_ONCE, left.shape[1]))
            slopes = self.slopes[:, start + here.start : start + here.stop].astype(np.float32)
            left[:, here] -= np.tensordot(confounds.astype(np.float32), slopes, axes=1)
        return left

    @classmethod
    def fit(cls, latents: LatentStore | np.ndarray, confounds: np.ndarray, grid: VoxelMask) -> "ConfoundRegression":
        """Fit on the controls.

        Parameters
        ----------
        latents : (S, P, d)
            Read in blocks; all NaN where a control is missing.
        confounds : ndarray, (S, k)
        grid : VoxelMask
        """
        _, n_locations, dimension = latents.shape
        size = confounds.shape[1]
        # Their own mean: a part of the controls need not be centred.
        centred = confounds - confounds.mean(axis=0)
        weights = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(size), centred.T).astype(np.float32)
        slopes = np.empty((size, n_locations, dimension), np.float32)
        for a in range(0, n_locations, _LOCATIONS_AT_ONCE):
            b = min(a + _LOCATIONS_AT_ONCE, n_locations)
            seen = np.asarray(latents[:, a:b], np.float32)
            slopes[:, a:b] = np.tensordot(weights, seen, axes=1)
            some = np.flatnonzero(np.isnan(seen[..., 0]).any(axis=0))
            slopes[:, a + some] = _slopes_of_those_there(seen[:, some], centred)
        counted = sum_over_neighbours(np.ones((n_locations, 1), np.float32), grid.locations)
        for slope in slopes:
            slope[:] = sum_over_neighbours(slope, grid.locations) / counted
        return cls(slopes.astype(np.float16))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        return write_tensors(path, {"slopes": self.slopes})

    @classmethod
    def load(cls, path: Path) -> "ConfoundRegression":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        with opened_tensors(path, "slopes of confounds") as file:
            return cls(file.array("slopes", "float16", 3))


def _slopes_of_those_there(latents: np.ndarray, confounds: np.ndarray) -> np.ndarray:
    """Slopes (k, n, d) at locations where some of the latents (S, n, d) are missing: a regression for each."""
    there = np.isfinite(latents[..., 0]).T  # (n, S)
    mean = there @ confounds / there.sum(axis=1, keepdims=True)
    centred = (confounds - mean[:, None]) * there[..., None]  # (n, S, k)
    products = centred.swapaxes(1, 2) @ np.nan_to_num(latents).swapaxes(0, 1)
    normal = centred.swapaxes(1, 2) @ centred + _RIDGE * np.eye(confounds.shape[1])
    return np.linalg.solve(normal, products).swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class ResidualisedLatents:
    """A latent store seen through an adjustment; adjusted block by block as it is read.

    Attributes
    ----------
    latents : LatentStore
    regression : ConfoundRegression
    confounds : ndarray, (S, k)
    """

    latents: LatentStore
    regression: ConfoundRegression
    confounds: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        return self.latents.shape

    @property
    def mask_hash(self) -> str:
        return self.latents.mask_hash

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``, (S, b - a, d) float32."""
        start, _, _ = index[1].indices(self.shape[1])
        return self.regression.residualise_block(self.latents[index], self.confounds, start)
