"""All prepared subjects on one grid, in one memory-mapped file.

Patches overlap: cut out and stored they would take a patch's area times the room, so they are cut on the fly.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import UserError
from ..data_manifests.grid import Grid
from .intensity_scale import IntensityScale
from .patch_grid import PatchGrid
from .prepared_images import PreparedImages

_VOLUMES, _MASK, _INDEX = "volumes.npy", "brain_mask.npy", "store.json"


@dataclass(frozen=True, eq=False)
class PatchStore:
    """Subjects by channels by voxels.

    Attributes
    ----------
    folder : Path
        Holds ``volumes.npy``, ``brain_mask.npy`` and, written last, ``store.json``.
    keys : tuple of str
        The subjects, in the order of the rows.
    channels : tuple of str
        What each channel is: the modalities, as ``("t1w", "flair")``.
    grid : PatchGrid
    volumes : memory-mapped ndarray, (S, C, X, Y, Z), float16
        Intensities in [0, 1]. Mapped copy-on-write: nothing that is done to it reaches the disk.
    """

    folder: Path
    keys: tuple[str, ...]
    channels: tuple[str, ...]
    grid: PatchGrid
    volumes: np.ndarray

    @classmethod
    def create(
        cls,
        folder: Path,
        subjects: Sequence[PreparedImages],
        template_grid: Grid,
        brain_mask: np.ndarray,
        scale: IntensityScale,
    ) -> "PatchStore":
        """Stack prepared images, brought onto one scale, and keep the scale beside them.

        A store that stood in the folder is replaced.

        Parameters
        ----------
        folder : Path
        subjects : sequence of PreparedImages
        template_grid : Grid
        brain_mask : ndarray of bool, (X, Y, Z)
        scale : IntensityScale
            Its modalities become the channels.

        Raises
        ------
        UserError
            No subjects, or one subject twice.
        SubjectError
            As `IntensityScale.read`.
        """
        keys, channels = [subject.key for subject in subjects], tuple(scale.standard)
        if not keys:
            raise UserError("Patch store: no subject is left to put in, expected at least one. See failures.csv.")
        if len(set(keys)) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise UserError(f"Patch store: {', '.join(twice)} named twice, expected once. Mend the manifest.")
        grid = PatchGrid(template_grid, brain_mask)
        # The index is what makes a store whole: it goes first and comes last.
        (folder / _INDEX).unlink(missing_ok=True)
        shape = (len(subjects), len(channels), *template_grid.size_vox)
        with written_whole(folder / _VOLUMES) as temporary:
            volumes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            for row, subject in enumerate(subjects):
                volumes[row] = scale.read(subject, template_grid)
            volumes.flush()
        np.save(folder / _MASK, grid.brain_mask, allow_pickle=False)
        scale.save(folder)
        index = {
            "keys": keys,
            "channels": list(channels),
            "affine": template_grid.affine.tolist(),
            "qform_code": template_grid.qform_code,
            "sform_code": template_grid.sform_code,
            "mask_hash": grid.mask_hash,
        }
        with written_whole(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "PatchStore":
        """Map a store that `create` has finished.

        Raises
        ------
        UserError
            There is none, or its files do not belong together.
        """
        if not (folder / _INDEX).exists():
            raise UserError(f"{folder}: holds no finished patch store. Run the stage extract first.")
        index = json.loads((folder / _INDEX).read_text())
        mask = np.load(folder / _MASK, allow_pickle=False)
        volumes = np.load(folder / _VOLUMES, mmap_mode="c", allow_pickle=False)
        affine = np.array(index["affine"])
        grid = PatchGrid(Grid(mask.shape, affine, index["qform_code"], index["sform_code"]), mask)
        expected = (len(index["keys"]), len(index["channels"]), *mask.shape)
        if grid.mask_hash != index["mask_hash"] or volumes.shape != expected:
            raise UserError(f"{folder}: its files do not belong together. Delete the folder and run extract again.")
        return cls(folder, tuple(index["keys"]), tuple(index["channels"]), grid, volumes)

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
