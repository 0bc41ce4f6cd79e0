"""Codes of many subjects on disk: one float16 file a subject, read in blocks of locations.

Compression would save 6 % and cost several times the reading speed, so the files are plain ``.npy``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import SubjectError, UserError, private
from ...data_manifests.typed_json import Content, read_json
from ...preprocessing.patches.voxel_mask import VoxelMask

_INDEX = "latents.json"


class _Index(Content):
    n_locations: Annotated[int, Field(ge=1)]
    latent_size: Annotated[int, Field(ge=1)]
    mask_hash: str


def _read_index(folder: Path) -> dict[str, Any]:
    advice = "Delete the folder and run the stage fit again."
    return read_json(folder / _INDEX, _Index, "a description of codes", advice).model_dump()


@dataclass(frozen=True)
class LatentStore:
    """Subjects by locations by code, behaving as an array that is read on demand.

    Attributes
    ----------
    folder : Path
        Holds ``<key>.npy`` (P, d) float16 for each subject, and ``latents.json``.
    keys : tuple of str
        The subjects of the first axis; other subjects may lie in the same folder.
    n_locations, latent_size : int
    mask_hash : str
        Of the `VoxelMask` whose locations these are.
    """

    folder: Path
    keys: tuple[str, ...]
    n_locations: int
    latent_size: int
    mask_hash: str

    @classmethod
    def create(cls, folder: Path, grid: VoxelMask, latent_size: int) -> "LatentStore":
        """Set up a folder to write to. Several processes may do this at once.

        Raises
        ------
        UserError
            The folder holds codes of other locations or of another size.
        """
        index = {"n_locations": grid.size, "latent_size": latent_size, "mask_hash": grid.mask_hash}
        path = folder / _INDEX
        if path.exists() and (found := _read_index(folder)) != index:
            raise UserError(
                f"{private(folder, 'its folder')}: holds codes of {found['latent_size']} numbers at "
                f"{found['n_locations']} locations of mask {found['mask_hash']}, expected {latent_size} at {grid.size} "
                f"of {grid.mask_hash}. Delete the folder."
            )
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
        return cls(folder, (), **index)

    @classmethod
    def open(cls, folder: Path, keys: Sequence[str], grid: VoxelMask | None = None) -> "LatentStore":
        """Open subjects that were written.

        Parameters
        ----------
        folder : Path
        keys : sequence of str
        grid : VoxelMask, optional
            Where given, the codes must be of its locations.

        Raises
        ------
        UserError
            No store, a subject that is not in it, a file of another shape, or codes of another mask.
        """
        path = folder / _INDEX
        if not path.exists():
            raise UserError(f"{private(folder, 'its folder')}: holds no codes. Run the stage fit first.")
        store = cls(folder, tuple(keys), **_read_index(folder))
        if grid is not None and grid.mask_hash != store.mask_hash:
            raise UserError(
                f"{private(folder, 'its folder')}: its codes belong to the locations of mask {store.mask_hash}, "
                f"expected {grid.mask_hash}. Encode the subjects again."
            )
        missing = [key for key in keys if not store._path(key).exists()]
        if missing:
            raise UserError(
                f"{private(folder, 'its folder')}: no codes of {', '.join(missing)}. Encode these subjects first."
            )
        for key in keys:
            store._mapped(key)
        return store

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        return len(self.keys), self.n_locations, self.latent_size

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``: a block of locations of all subjects, (S, b - a, d) float32."""
        match index:
            case (slice(start=None, stop=None, step=None), slice(step=None) as block):
                start, stop, _ = block.indices(self.n_locations)
            case _:
                raise IndexError(f"latents[{index}]: only latents[:, a:b] can be read")
        out = np.empty((len(self.keys), max(0, stop - start), self.latent_size), np.float32)
        for row, key in enumerate(self.keys):
            # Mapped anew for each block: what was read does not stay in the process.
            out[row] = self._mapped(key)[start:stop]
        return out

    def subject(self, key: str) -> np.ndarray:
        """Codes of one subject of the folder, (P, d) float32."""
        if not self._path(key).exists():
            raise UserError(f"{private(self.folder)}: no codes of {key}. Encode this subject first.")
        return self._mapped(key).astype(np.float32)

    def write(self, key: str, latents: np.ndarray, there: np.ndarray | None = None) -> Path:
        """Store the codes (P, d) of one subject, whole or not at all.

        Parameters
        ----------
        key : str
        latents : ndarray, (P, d)
        there : ndarray of bool, (P,), optional
            Where the subject has something to show; it reads as NaN at the other locations.

        Raises
        ------
        SubjectError
            Codes that are not finite in float16.
        """
        latents = np.asarray(latents)
        if latents.shape != self.shape[1:]:
            raise ValueError(f"codes {latents.shape}, expected {self.shape[1:]}")
        with np.errstate(over="ignore"):
            stored = latents.astype(np.float16)
        if there is not None:
            stored[~there] = 0
        if not np.isfinite(stored).all():
            count = int((~np.isfinite(stored)).any(axis=1).sum())
            raise SubjectError(
                f"{key}: its codes are not finite in float16 at {count} of {self.n_locations} locations, expected "
                "finite ones. Look at its prepared image; train the encoder again if other subjects show the same."
            )
        if there is not None:
            stored[~there] = np.nan
        with atomic_write(self._path(key)) as temporary:
            np.save(temporary, stored, allow_pickle=False)
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _mapped(self, key: str) -> np.ndarray:
        try:
            latents = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{private(self._path(key))}: not readable as codes ({error}). Encode the subject again."
            ) from error
        if latents.shape != self.shape[1:]:
            raise UserError(
                f"{key}: its codes have the shape {latents.shape}, expected {self.shape[1:]}. Encode the subject again."
            )
        return latents
