"""All prepared subjects on one grid, in one memory-mapped file.

Patches overlap: cut out and stored they would take a patch's area times the room, so they are cut on the fly.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.grid import Grid
from ..data_manifests.volume import read_volume
from .patch_grid import PatchGrid

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
        subjects: Sequence[tuple[str, Sequence[Path]]],
        template_grid: Grid,
        brain_mask: np.ndarray,
        *,
        channels: Sequence[str],
    ) -> "PatchStore":
        """Stack prepared images. A store that stood in the folder is replaced.

        Parameters
        ----------
        folder : Path
        subjects : sequence of (key, image paths in the order of the channels)
        template_grid : Grid
        brain_mask : ndarray of bool, (X, Y, Z)
        channels : sequence of str

        Raises
        ------
        UserError
            No subjects, or one subject twice.
        SubjectError
            An image is missing, unreadable, off the template grid, or its intensities leave [0, 1].
        """
        keys = [key for key, _ in subjects]
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
            for row, (key, paths) in enumerate(subjects):
                volumes[row] = _read_channels(key, paths, template_grid, channels)
            volumes.flush()
        np.save(folder / _MASK, grid.brain_mask, allow_pickle=False)
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


def _read_channels(key: str, paths: Sequence[Path], grid: Grid, channels: Sequence[str]) -> np.ndarray:
    if len(paths) != len(channels):
        raise SubjectError(f"{key}: has {len(paths)} prepared images, expected one each for {', '.join(channels)}.")
    images = []
    for path, channel in zip(paths, channels, strict=True):
        try:
            image = read_volume(path)
        except UserError as error:
            raise SubjectError(f"{key}: {error} Prepare the subject again.") from error
        if not image.grid.same_as(grid):
            raise SubjectError(
                f"{key}: its prepared {channel} lies on {image.grid}, expected the template grid {grid}. "
                "Prepare the subject again."
            )
        low, high = float(image.voxels.min()), float(image.voxels.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise SubjectError(
                f"{key}: its prepared {channel} has intensities from {low:.3g} to {high:.3g}, expected 0 to 1. "
                "Prepare the subject again."
            )
        images.append(image.voxels)
    return np.stack(images)
