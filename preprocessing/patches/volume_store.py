"""Memory-mapped storage of the images of all prepared subjects on one grid.

Patches are cut on the fly: they overlap, and storing them would multiply the disk space by the voxels in a patch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.subject import original_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.memory_map import new_mapped_array, release_pages
from ...data_manifests.images.metatensor import as_metatensor
from ...data_manifests.typed_json import load_json
from ..intensity.channels import Channels, channel_index
from ..prepared_images import PreparedImages
from .voxel_mask import VoxelMask

_VOLUMES, _INSIDE, _MASK, _INDEX = "volumes.npy", "inside.npy", "brain_mask.npy", "store.json"


@dataclass(frozen=True, eq=False)
class VolumeStore:
    """Volumes of all subjects: subjects by channels by voxels.

    Also a map-style dataset for the data loaders of torch and MONAI, with one item per subject; see `__getitem__`.

    Attributes
    ----------
    folder : Path
        Contains ``volumes.npy``, ``inside.npy``, ``brain_mask.npy``, ``channels.json`` and, written last,
        ``store.json``.
    keys : tuple of str
        The subjects, in the order of the rows.
    channels : tuple of str
        Names of the channels: the modalities, then the derived maps, for example ``("t1w", "t1w_junction")``.
    grid : VoxelMask
        The analysed voxels.
    volumes : memory-mapped ndarray, (S, C, X, Y, Z), float16
        In [0, 1]. Mapped copy-on-write: changes are not written to disk.
    inside : memory-mapped ndarray, (S, X, Y, Z), bool
        Brain mask of each subject. The mask of the analysed voxels is that of `grid`.
    """

    folder: Path
    keys: tuple[str, ...]
    channels: tuple[str, ...]
    grid: VoxelMask
    volumes: np.ndarray
    inside: np.ndarray

    @classmethod
    def create(
        cls,
        folder: Path,
        subjects: Sequence[PreparedImages],
        template_grid: Grid,
        brain_mask: np.ndarray,
        channels: Channels,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "VolumeStore":
        """Write the channels of all subjects and the definition of the channels to a folder.

        An existing store in the folder is replaced.

        Parameters
        ----------
        folder : Path
        subjects : sequence of PreparedImages
        template_grid : Grid
        brain_mask : ndarray of bool, (X, Y, Z)
        channels : Channels
        progress : callable
            Called with (subjects done, total).

        Raises
        ------
        UserError
            There are no subjects, or a subject occurs twice.
        SubjectError
            See `Channels.read`.
        """
        keys = [subject.key for subject in subjects]
        if not keys:
            raise UserError("Volume store: no subject is left, expected at least one. See failures.csv.")
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise UserError(f"Volume store: {', '.join(twice)} named twice, expected once. Correct the manifest.")
        voxel_mask = VoxelMask(template_grid, brain_mask)
        # A store is complete if it has its index: remove it first, write it last.
        (folder / _INDEX).unlink(missing_ok=True)
        size = template_grid.size_vox
        with atomic_write(folder / _VOLUMES) as images, atomic_write(folder / _INSIDE) as masks:
            volumes = new_mapped_array(images, np.float16, (len(keys), len(channels.names), *size))
            inside = new_mapped_array(masks, np.bool_, (len(keys), *size))
            for row, subject in enumerate(subjects):
                volumes[row] = channels.read(subject, template_grid)
                inside[row] = subject.read_brain_mask(template_grid).voxels
                progress(row + 1, len(subjects))
            volumes.flush()
            inside.flush()
        with atomic_write(folder / _MASK) as temporary:
            np.save(temporary, voxel_mask.brain_mask, allow_pickle=False)
        channels.save(folder)
        index = {
            "keys": keys,
            "channels": list(channels.names),
            "affine": template_grid.affine.tolist(),
            "qform_code": template_grid.qform_code,
            "sform_code": template_grid.sform_code,
            "mask_hash": voxel_mask.mask_hash,
        }
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "VolumeStore":
        """Open a store written by `create`.

        Raises
        ------
        UserError
            The store is missing or incomplete, or its files do not match each other.
        """
        if not (folder / _INDEX).exists():
            raise UserError(
                f"{private(folder, 'its folder')}: holds no complete volume store. Run the stage extract first."
            )
        index = load_json(folder / _INDEX)
        mask = np.load(folder / _MASK, allow_pickle=False)
        volumes, inside = (np.load(folder / name, mmap_mode="c", allow_pickle=False) for name in (_VOLUMES, _INSIDE))
        affine = np.array(index["affine"])
        voxel_mask = VoxelMask(Grid(mask.shape, affine, index["qform_code"], index["sform_code"]), mask)
        expected = (len(index["keys"]), len(index["channels"]), *mask.shape)
        shapes = volumes.shape, inside.shape
        if voxel_mask.mask_hash != index["mask_hash"] or shapes != (expected, (expected[0], *mask.shape)):
            raise UserError(
                f"{private(folder, 'its folder')}: the files of the volume store do not match each other. Delete the "
                "folder and run the stage extract again."
            )
        return cls(folder, tuple(index["keys"]), tuple(index["channels"]), voxel_mask, volumes, inside)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return a copy of one subject.

        Returns
        -------
        dict
            ``image``: MetaTensor, (C, X, Y, Z), float32, in [0, 1]. ``brain_mask``: MetaTensor, (1, X, Y, Z), bool.
            ``key``: str.
        """
        key, grid = self.keys[row], self.grid.grid
        image = as_metatensor(self.volumes[row].astype(np.float32), grid)
        return {"image": image, "brain_mask": as_metatensor(self.inside[row][None], grid), "key": key}

    def only(self, channels: Sequence[str]) -> "VolumeStore":
        """Select channels, in the given order; a view of the volumes if the channels are contiguous.

        Raises
        ------
        UserError
            A channel is not in the store.
        """
        chosen = channel_index(channels, self.channels)
        contiguous = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
        volumes = self.volumes[:, chosen[0] : chosen[-1] + 1] if contiguous else self.volumes[:, chosen]
        return replace(self, channels=tuple(channels), volumes=volumes)

    def release_pages(self) -> None:
        """Release the memory of pages that were read. Changes to the arrays in memory are lost."""
        for array in (self.volumes, self.inside):
            release_pages(array)

    def volumes_of(self, key: str) -> np.ndarray:
        """Return the channels of a subject or of its mirrored copy: (C, X, Y, Z) float16, a view.

        Raises
        ------
        UserError
            The subject is not in the store.
        """
        return self._of(self.volumes, key)

    def inside_of(self, key: str) -> np.ndarray:
        """Return the brain mask, (X, Y, Z) bool, as `volumes_of`."""
        return self._of(self.inside, key)

    def _of(self, array: np.ndarray, key: str) -> np.ndarray:
        (row,) = self.index([original_key(key)])
        return array[row, ..., ::-1, :, :] if key != original_key(key) else array[row]

    def index(self, keys: Sequence[str]) -> np.ndarray:
        """Return the rows of subjects, (len(keys),) int64.

        Raises
        ------
        UserError
            A subject is not in the store.
        """
        rows = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in rows]
        if missing:
            raise UserError(f"Volume store: does not contain {', '.join(missing)}. Run the stage extract again.")
        return np.array([rows[key] for key in keys], dtype=np.int64)
