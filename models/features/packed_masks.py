"""Brain masks of many subjects, with a bit for each voxel."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of S subjects over P voxels; read like an array (S, P), subject by subject.

    Attributes
    ----------
    bits : ndarray of uint8, (S, ceil(P / 8))
    n_voxels : int
    """

    bits: np.ndarray
    n_voxels: int

    @classmethod
    def pack(cls, masks: Iterable[np.ndarray], n_voxels: int) -> "PackedMasks":
        """Pack masks (P,) bool."""
        return cls(np.stack([np.packbits(mask) for mask in masks]), n_voxels)

    @property
    def shape(self) -> tuple[int, int]:
        """(S, P)."""
        return len(self.bits), self.n_voxels

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, subject: int) -> np.ndarray:
        """Return the mask of a subject, (P,) bool."""
        return np.unpackbits(self.bits[subject], count=self.n_voxels).view(bool)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[subject] for subject in range(len(self)))


Masks = PackedMasks | np.ndarray
