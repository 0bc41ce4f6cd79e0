"""Principal components of healthy brains, used as confounds.

The components are the first principal components of the controls' standardised voxel values. They describe differences
between whole brains, such as wide ventricles and sulci, contrast or shading. The weights of a brain on the components
are regressed out of the features like a covariate (`regression`). The weights are estimated by robust regression
(Huber, Ann Math Stat 35, 1964), so that even a large lesion hardly changes them.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..features.extractors import Features
from ..features.subsets import evenly_spaced
from ..settings import PARTICIPANTS_PER_COMPONENT
from ..tensor_file import opened_tensors, write_tensors

_SAMPLED_VOXELS = 50_000
"""Number of evenly spaced voxels that represent a brain."""
_CLIP_SD = 4.0
"""Standardised values are clipped here, which limits the influence of a lesion."""
_HUBER_SD = 1.345
"""Residuals up to this size, in standard deviations, have full weight."""
_ITERATIONS = 5
_SMALLEST_SD = 0.3
"""Floor of the standard deviation at a voxel, as a share of the brain's median."""


@dataclass(frozen=True, eq=False)
class BrainComponents:
    """Principal components of the training controls' brains.

    Attributes
    ----------
    features : Features
        Features of all channels.
    mean, scale : ndarray, (p, c), float32
        Mean and inverse standard deviation of the features at the p sampled voxels.
    maps : ndarray, (k, p * c), float32
        Components, scaled so that the weights of the training controls have variance 1.
    """

    features: Features
    mean: np.ndarray
    scale: np.ndarray
    maps: np.ndarray

    @property
    def size(self) -> int:
        """Number of components (k)."""
        return len(self.maps)

    def weights(self, brain: np.ndarray) -> np.ndarray:
        """Estimate the weights of a `sampled` brain (p, c), (k,) float64; 0 is the controls' mean."""
        values, available = _standardised(brain, self.mean, self.scale), np.isfinite(brain).ravel()
        weights, huber = np.zeros(self.size), available.astype(np.float32)
        for _ in range(_ITERATIONS):
            weighted = self.maps * huber
            weights = np.linalg.lstsq((weighted @ self.maps.T).astype(np.float64), weighted @ values, rcond=None)[0]
            residuals = np.abs(values - weights.astype(np.float32) @ self.maps)
            huber = available * (_HUBER_SD / np.maximum(residuals, _HUBER_SD)).astype(np.float32)
        return weights

    @classmethod
    def learn(cls, features: Features, brains: np.ndarray, size: int) -> "BrainComponents":
        """Learn `size` components (see `affordable`) from the `sampled` brains of controls, (S, p, c)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Voxels without brain in any control.
            mean, sd = np.nanmean(brains, axis=0), np.nanstd(brains, axis=0)
            floor = _SMALLEST_SD * np.nanmedian(sd, axis=0)
        scale = 1 / np.maximum(sd, np.maximum(floor, np.finfo(np.float32).eps))
        rows = np.stack([_standardised(brain, mean, scale) for brain in brains])
        _, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
        maps = vectors[:, : -size - 1 : -1].T @ rows / np.sqrt(len(rows))
        return cls(features, mean, scale, maps.astype(np.float32))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        return write_tensors(path, {"mean": self.mean, "scale": self.scale, "maps": self.maps})

    @classmethod
    def load(cls, path: Path, features: Features) -> "BrainComponents":
        """Load saved components.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        with opened_tensors(path, "components of healthy brains") as file:
            # The mean is NaN where no control has brain.
            mean, scale = (file.array(name, "float32", 2, finite=False) for name in ("mean", "scale"))
            maps = file.array("maps", "float32", 2)
            if mean.shape != scale.shape or maps.shape[1] != mean.size or (scale <= 0).any():
                raise ValueError(f"maps {maps.shape} do not match means {mean.shape} and positive scales {scale.shape}")
            return cls(features, mean, scale, maps)


def affordable(wanted: int, participants: int) -> int:
    """Return the number of components to learn: at most one per five participants, and at most `wanted`."""
    return min(wanted, participants // PARTICIPANTS_PER_COMPONENT)


def sampled(features: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Sample the features (P, c) of a subject at p evenly spaced voxels, (p, c) float32.

    Values outside the subject's brain mask `inside` (P,) are NaN, i.e. missing.
    """
    index = evenly_spaced(len(features), _SAMPLED_VOXELS)
    return np.where(inside[index, None], features[index], np.nan).astype(np.float32)


def _standardised(brain: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise and clip a brain (p, c); missing values become 0. (p * c,)."""
    return np.nan_to_num(np.clip((brain - mean) * scale, -_CLIP_SD, _CLIP_SD)).ravel()
