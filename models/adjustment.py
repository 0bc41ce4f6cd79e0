"""Features without what age, sex or site explain of them: a straight line at every location.

At each location, ridge regression of every feature on the controls' covariates; the slopes are pooled over the 3x3x3
neighbours, as the covariances are. What is taken off is the slope times a person's covariates, which are centred: a
person of the controls' mean, or of whom nothing is known, is left as found.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..preprocessing.patch_grid import PatchGrid
from .latent_store import LatentStore
from .tensor_file import opened_tensors, write_tensors
from .whitening import sum_over_neighbours

_RIDGE = 5.0
"""As many controls' worth of no effect."""
_LOCATIONS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class Adjustment:
    """Slopes at each location.

    Attributes
    ----------
    slopes : ndarray, (P, k, d), float32
        Change of the features with one unit of each covariate.
    """

    slopes: np.ndarray

    def apply(self, features: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Features (P, d) of one person with `covariates` (k,) as they would be at the controls' mean; float32."""
        return features - np.einsum("k,pkd->pd", covariates.astype(np.float32), self.slopes)

    @classmethod
    def fit(cls, latents: LatentStore | np.ndarray, covariates: np.ndarray, grid: PatchGrid) -> "Adjustment":
        """Fit on the controls.

        Parameters
        ----------
        latents : (S, P, d)
            Read in blocks.
        covariates : ndarray, (S, k)
        grid : PatchGrid
        """
        _, n_locations, dimension = latents.shape
        size = covariates.shape[1]
        # Their own mean: a part of the controls need not be centred.
        centred = covariates - covariates.mean(axis=0)
        weights = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(size), centred.T).astype(np.float32)
        slopes = np.empty((n_locations, size, dimension), np.float32)
        for a in range(0, n_locations, _LOCATIONS_AT_ONCE):
            b = min(a + _LOCATIONS_AT_ONCE, n_locations)
            block = np.asarray(latents[:, a:b], np.float32)
            slopes[a:b] = np.einsum("ks,spd->pkd", weights, block - block.mean(axis=0), optimize=True)
        counted = sum_over_neighbours(np.ones((n_locations, 1), np.float32), grid.locations)
        for number in range(size):
            slopes[:, number] = sum_over_neighbours(slopes[:, number], grid.locations) / counted
        return cls(slopes)

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        return write_tensors(path, {"slopes": self.slopes})

    @classmethod
    def load(cls, path: Path) -> "Adjustment":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        with opened_tensors(path, "slopes of covariates") as file:
            return cls(file.get_tensor("slopes"))


@dataclass(frozen=True, eq=False)
class AdjustedLatents:
    """A latent store seen through an adjustment; adjusted block by block as it is read.

    Attributes
    ----------
    latents : LatentStore
    adjustment : Adjustment
    covariates : ndarray, (S, k)
    """

    latents: LatentStore
    adjustment: Adjustment
    covariates: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        return self.latents.shape

    @property
    def mask_hash(self) -> str:
        return self.latents.mask_hash

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``, (S, b - a, d) float32."""
        taken = np.einsum("sk,pkd->spd", self.covariates.astype(np.float32), self.adjustment.slopes[index[1]])
        return self.latents[index] - taken
