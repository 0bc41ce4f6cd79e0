"""Voxel-wise linear confound regression.

At each voxel, every feature is regressed on the confounds of the controls that have the feature (ridge regression). The
slopes are averaged over the 3x3x3 neighbours (`features.moments` fits them). Residuals are the features minus slopes
times confounds. Confounds are centred: features of a subject at the controls' mean, or with missing covariates, do not
change.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..ocsvm.blocks import as_floats
from ..tensor_file import opened_tensors, write_tensors

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

    def residualise_block(self, features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
        """Regress the confounds (S, k) of subjects out of their features (S, P, d); float32."""
        residuals = features.astype(np.float32, order="C")
        for a in range(0, residuals.shape[1], _VOXELS_AT_ONCE):
            block = slice(a, min(a + _VOXELS_AT_ONCE, residuals.shape[1]))
            slopes = as_floats(self.slopes[:, block])
            # The product is subtracted in place; `view` never copies.
            flat = torch.from_numpy(residuals[:, block]).view(len(residuals), -1)
            flat.addmm_(torch.from_numpy(confounds.astype(np.float32)), torch.from_numpy(slopes).flatten(1), alpha=-1)
        return residuals

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
