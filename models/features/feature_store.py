"""Voxel-wise latents (or other features) of many subjects on disk, read in blocks of voxels.

Each subject has one float16 ``.npy`` file. Compression would save 6 % of the space, at several times the reading time.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import SubjectError, UserError, private
from ...data_manifests.typed_json import Content, read_json
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..ocsvm.blocks import as_floats

_INDEX = "latents.json"


class _Index(Content):
    n_locations: Annotated[int, Field(ge=1)]
    latent_size: Annotated[int, Field(ge=1)]
    mask_hash: str


def _read_index(folder: Path) -> dict[str, Any]:
    advice = "Delete the folder and run the stage fit again."
    return read_json(folder / _INDEX, _Index, "a description of latents", advice).model_dump()


@dataclass(frozen=True)
class LatentStore:
    """Array of subjects by voxels by latent dimensions that is read from disk on demand.

    Attributes
    ----------
    folder : Path
        Contains ``<key>.npy`` (P, d) float16 for each subject, and ``latents.json``.
    keys : tuple of str
        Subjects of the first axis; the folder may contain other subjects.
    n_locations : int
        Number of voxels (P).
    latent_size : int
        Number of latent dimensions (d).
    mask_hash : str
        Hash of the `VoxelMask` to which the voxels belong.
    offsets : dict from key to int
        Where the values begin in the files read so far. Headers are read once, and not in several threads: Python
        3.11 may fail to parse two of them at a time.
    """

    folder: Path
    keys: tuple[str, ...]
    n_locations: int
    latent_size: int
    mask_hash: str
    offsets: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(cls, folder: Path, mask: VoxelMask, latent_size: int) -> "LatentStore":
        """Create a store without subjects; safe to call from several processes at once.

        Raises
        ------
        UserError
            The folder holds latents of another mask or of another size.
        """
        index = {"n_locations": mask.size, "latent_size": latent_size, "mask_hash": mask.mask_hash}
        path = folder / _INDEX
        if path.exists() and (found := _read_index(folder)) != index:
            raise UserError(
                f"{private(folder, 'its folder')}: holds latents of size {found['latent_size']} at "
                f"{found['n_locations']} voxels of mask {found['mask_hash']}, expected size {latent_size} at "
                f"{mask.size} voxels of mask {mask.mask_hash}. Delete the folder."
            )
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
        return cls(folder, (), **index)

    @classmethod
    def open(cls, folder: Path, keys: Sequence[str], mask: VoxelMask | None = None) -> "LatentStore":
        """Open the latents of some subjects.

        Parameters
        ----------
        folder : Path
        keys : sequence of str
        mask : VoxelMask, optional
            Mask that the latents must belong to.

        Raises
        ------
        UserError
            The folder holds no latents, a subject is missing, a file has another shape, or the mask differs.
        """
        path = folder / _INDEX
        if not path.exists():
            raise UserError(f"{private(folder, 'its folder')}: holds no latents. Run the stage fit first.")
        store = cls(folder, tuple(keys), **_read_index(folder))
        if mask is not None and mask.mask_hash != store.mask_hash:
            raise UserError(
                f"{private(folder, 'its folder')}: its latents belong to mask {store.mask_hash}, expected "
                f"{mask.mask_hash}. Encode the subjects again."
            )
        missing = [key for key in keys if not store._path(key).exists()]
        if missing:
            raise UserError(
                f"{private(folder, 'its folder')}: holds no latents of {', '.join(missing)}. Encode these subjects "
                "first."
            )
        for key in keys:
            store._memory_map(key)
        return store

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        return len(self.keys), self.n_locations, self.latent_size

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Read ``latents[:, a:b]``, a block of voxels of all subjects, (S, b - a, d) float32."""
        match index:
            case (slice(start=None, stop=None, step=None), slice(step=None) as block):
                start, stop, _ = block.indices(self.n_locations)
            case _:
                raise IndexError(f"latents[{index}]: only latents[:, a:b] can be read")
        out = np.empty((len(self.keys), max(0, stop - start), self.latent_size), np.float32)
        for row, key in enumerate(self.keys):
            # Mapped again for each block, so that the pages read are released.
            out[row] = as_floats(self._memory_map(key)[start:stop])
        return out

    def subject(self, key: str) -> np.ndarray:
        """Read the latents of one subject in the folder, (P, d) float32."""
        if not self._path(key).exists():
            raise UserError(f"{private(self.folder)}: holds no latents of {key}. Encode this subject first.")
        return as_floats(self._memory_map(key))

    def write(self, key: str, latents: np.ndarray, available: np.ndarray | None = None) -> Path:
        """Write the latents (P, d) of one subject, atomically.

        Parameters
        ----------
        key : str
        latents : ndarray, (P, d)
        available : ndarray of bool, (P,), optional
            Voxels at which the subject has latents; the others are stored as NaN.

        Raises
        ------
        SubjectError
            Latents that are not finite in float16.
        """
        latents = np.asarray(latents)
        if latents.shape != self.shape[1:]:
            raise ValueError(f"latents {latents.shape}, expected {self.shape[1:]}")
        with np.errstate(over="ignore"):
            stored = latents.astype(np.float16, order="C")
        if available is not None:
            stored[~available] = 0
        if not np.isfinite(stored).all():
            count = int((~np.isfinite(stored)).any(axis=1).sum())
            raise SubjectError(
                f"{key}: its latents are not finite in float16 at {count} of {self.n_locations} voxels, expected "
                "finite values. Check its prepared image; train the encoder again if other subjects fail as well."
            )
        if available is not None:
            stored[~available] = np.nan
        with atomic_write(self._path(key)) as temporary:
            np.save(temporary, stored, allow_pickle=False)
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _memory_map(self, key: str) -> np.ndarray:
        try:
            if key in self.offsets:
                return np.memmap(self._path(key), np.float16, "r", self.offsets[key], self.shape[1:])
            latents = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{private(self._path(key))}: not readable as latents ({error}). Encode the subject again."
            ) from error
        if latents.shape != self.shape[1:] or latents.dtype != np.float16:
            raise UserError(
                f"{key}: its latents have shape {latents.shape}, {latents.dtype}, expected {self.shape[1:]}, float16. "
                "Encode the subject again."
            )
        if latents.flags.c_contiguous:
            self.offsets[key] = latents.offset
        return latents


ReadFeatures = Callable[[Sequence[int] | np.ndarray], LatentStore | np.ndarray]
"""Function that opens the features (n, P, d) of the n training controls with the given indices."""
