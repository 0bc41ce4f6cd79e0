"""All prepared subjects on one grid, in one memory-mapped file.

Patches overlap: cut out and stored they would take a patch's area times the room, so they are cut on the fly.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.memory_map import new_mapped_array, release_pages
from ...data_manifests.typed_json import load_json
from ..intensity.channels import Channels, channel_index
from ..prepared_images import PreparedImages
from .voxel_mask import VoxelMask

_VOLUMES, _INSIDE, _MASK, _INDEX = "volumes.npy", "inside.npy", "brain_mask.npy", "store.json"


@dataclass(frozen=True, eq=False)
class VolumeStore:
    """Subjects by channels by voxels.

    Attributes
    ----------
    folder : Path
        Holds ``volumes.npy``, ``inside.npy``, ``brain_mask.npy``, ``channels.json`` and, written last, ``store.json``.
    keys : tuple of str
        The subjects, in the order of the rows.
    channels : tuple of str
        What each channel is: the modalities, then the maps derived from them, as ``("t1w", "t1w_junction")``.
    grid : VoxelMask
    volumes : memory-mapped ndarray, (S, C, X, Y, Z), float16
        In [0, 1]. Mapped copy-on-write: nothing that is done to it reaches the disk.
    inside : memory-mapped ndarray, (S, X, Y, Z), bool
        Each subject's own brain. The template's, which gives the locations, is `grid`'s.
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
    ) -> "VolumeStore":
        """Stack what the models see of each subject, and keep beside it how that was made.

        A store that stood in the folder is replaced.

        Parameters
        ----------
        folder : Path
        subjects : sequence of PreparedImages
        template_grid : Grid
        brain_mask : ndarray of bool, (X, Y, Z)
        channels : Channels

        Raises
        ------
        UserError
            No subjects, or one subject twice.
        SubjectError
            As `Channels.read`.
        """
        keys = [subject.key for subject in subjects]
        if not keys:
            raise UserError("Patch store: no subject is left to put in, expected at least one. See failures.csv.")
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise UserError(f"Patch store: {', '.join(twice)} named twice, expected once. Mend the manifest.")
        grid = VoxelMask(template_grid, brain_mask)
        # The index is what makes a store whole: it goes first and comes last.
        (folder / _INDEX).unlink(missing_ok=True)
        size = template_grid.size_vox
        with atomic_write(folder / _VOLUMES) as images, atomic_write(folder / _INSIDE) as masks:
            volumes = new_mapped_array(images, np.float16, (len(keys), len(channels.names), *size))
            inside = new_mapped_array(masks, np.bool_, (len(keys), *size))
            for row, subject in enumerate(subjects):
                volumes[row] = channels.read(subject, template_grid)
                inside[row] = subject.read_brain_mask(template_grid).voxels
            volumes.flush()
            inside.flush()
        with atomic_write(folder / _MASK) as temporary:
            np.save(temporary, grid.brain_mask, allow_pickle=False)
        channels.save(folder)
        index = {
            "keys": keys,
            "channels": list(channels.names),
            "affine": template_grid.affine.tolist(),
            "qform_code": template_grid.qform_code,
            "sform_code": template_grid.sform_code,
            "mask_hash": grid.mask_hash,
        }
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "VolumeStore":
        """Map a store that `create` has finished.

        Raises
        ------
        UserError
            There is none, or its files do not belong together.
        """
        if not (folder / _INDEX).exists():
            raise UserError(
                f"{private(folder, 'its folder')}: holds no finished patch store. Run the stage extract first."
            )
        index = load_json(folder / _INDEX)
        mask = np.load(folder / _MASK, allow_pickle=False)
        volumes, inside = (np.load(folder / name, mmap_mode="c", allow_pickle=False) for name in (_VOLUMES, _INSIDE))
        affine = np.array(index["affine"])
        grid = VoxelMask(Grid(mask.shape, affine, index["qform_code"], index["sform_code"]), mask)
        expected = (len(index["keys"]), len(index["channels"]), *mask.shape)
        shapes = volumes.shape, inside.shape
        if grid.mask_hash != index["mask_hash"] or shapes != (expected, (expected[0], *mask.shape)):
            raise UserError(
                f"{private(folder, 'its folder')}: its files do not belong together. Delete the folder and run "
                "extract again."
            )
        return cls(folder, tuple(index["keys"]), tuple(index["channels"]), grid, volumes, inside)

    def only(self, channels: Sequence[str]) -> "VolumeStore":
        """The same store with some of its channels, in that order; a view where they stand side by side.

        Raises
        ------
        UserError
            One is not in the store.
        """
        chosen = channel_index(channels, self.channels)
        together = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
        volumes = self.volumes[:, chosen[0] : chosen[-1] + 1] if together else self.volumes[:, chosen]
        return replace(self, channels=tuple(channels), volumes=volumes)

    def release_pages(self) -> None:
        """Give back the memory of what was read. What was written to the arrays in memory is lost."""
        for array in (self.volumes, self.inside):
            release_pages(array)

    def index(self, keys: Sequence[str]) -> np.ndarray:
        """Rows of subjects, (len(keys),) int64.

        Raises
        ------
        UserError
            A subject is not in the store.
        """
        rows = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in rows]
        if missing:
            raise UserError(f"Patch store: {', '.join(missing)} not among its subjects. Run the stage extract again.")
        return np.array([rows[key] for key in keys], dtype=np.int64)
