"""Whole-brain patterns in which healthy brains differ: wide ventricles and sulci, a contrast, a shade of their own.

They are the first principal components of the controls' brains, voxel values on a common scale. How much a brain has of
each is a handful of numbers, which features are adjusted for as for an age (`regression`): what a voxel shows because
the whole brain is so is no lesion. They are found by robust regression (Huber, Ann Math Stat 35, 1964), in which a
lesion, even a large one, hardly weighs in.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..features.extractors import Features
from ..tensor_file import opened_tensors, write_tensors

_LOCATIONS = 50_000
"""As many, evenly spread, tell what a whole brain is like."""
_FURTHEST = 4.0
"""Standard deviations at which a value is held: no lesion makes itself heard by its depth."""
_TRUSTED = 1.345
"""Standard deviations off the patterns up to which a value counts in full."""
_ROUNDS = 5
_LEAST_SPREAD = 0.3
"""Of a place, as a share of the brain's median."""
_PEOPLE_A_PATTERN = 5


@dataclass(frozen=True, eq=False)
class BrainComponents:
    """Learnt on the training controls.

    Attributes
    ----------
    features : Features
        All channels.
    mean, scale : ndarray, (p, c), float32
        Of the features, at p locations spread over the brain; `scale` is one over the standard deviation.
    maps : ndarray, (k, p * c), float32
        What a brain has of one unit of each; the controls that they are learnt on have a variance of 1.
    """

    features: Features
    mean: np.ndarray
    scale: np.ndarray
    maps: np.ndarray

    @property
    def size(self) -> int:
        """How many (k)."""
        return len(self.maps)

    def weights(self, brain: np.ndarray) -> np.ndarray:
        """How much a `sampled` brain (p, c) has of each pattern, (k,) float64: 0 is the controls' mean."""
        values, known = _held(brain, self.mean, self.scale), np.isfinite(brain).ravel()
        trust = known.astype(np.float32)
        for _ in range(_ROUNDS):
            trusted = self.maps * trust
            found = np.linalg.lstsq((trusted @ self.maps.T).astype(np.float64), trusted @ values, rcond=None)[0]
            apart = np.abs(values - found.astype(np.float32) @ self.maps)
            trust = known * (_TRUSTED / np.maximum(apart, _TRUSTED)).astype(np.float32)
        return found

    @classmethod
    def learn(cls, features: Features, brains: np.ndarray, size: int) -> "BrainComponents":
        """Learn `size` patterns (see `affordable`) from the `sampled` brains of controls, (S, p, c)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Places that hardly anybody's brain reaches.
            mean, deviation = np.nanmean(brains, axis=0), np.nanstd(brains, axis=0)
            floor = _LEAST_SPREAD * np.nanmedian(deviation, axis=0)
        scale = 1 / np.maximum(deviation, np.maximum(floor, np.finfo(np.float32).eps))
        rows = np.stack([_held(brain, mean, scale) for brain in brains])
        _, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
        maps = vectors[:, : -size - 1 : -1].T @ rows / np.sqrt(len(rows))
        return cls(features, mean, scale, maps.astype(np.float32))

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        return write_tensors(path, {"mean": self.mean, "scale": self.scale, "maps": self.maps})

    @classmethod
    def load(cls, path: Path, features: Features) -> "BrainComponents":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        with opened_tensors(path, "components of healthy brains") as file:
            # NaN where no control has brain.
            mean, scale = (file.array(name, "float32", 2, finite=False) for name in ("mean", "scale"))
            maps = file.array("maps", "float32", 2)
            if mean.shape != scale.shape or maps.shape[1] != mean.size or (scale <= 0).any():
                raise ValueError(f"its maps are {maps.shape}, for means {mean.shape} and scales {scale.shape} above 0")
            return cls(features, mean, scale, maps)


def affordable(wanted: int, participants: int) -> int:
    """As many patterns as some people can tell from chance: one for five of them, at most those wanted."""
    return min(wanted, participants // _PEOPLE_A_PATTERN)


def sampled(features: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What patterns see of a subject's features (P, c): p places spread over the brain, (p, c) float32.

    Outside the subject's own brain, `inside` (P,), NaN: nothing is held against it there.
    """
    index = np.linspace(0, len(features) - 1, min(_LOCATIONS, len(features))).astype(np.int64)
    return np.where(inside[index, None], features[index], np.nan).astype(np.float32)


def _held(brain: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.clip((brain - mean) * scale, -_FURTHEST, _FURTHEST)).ravel()
