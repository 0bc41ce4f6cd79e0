"""Patches of edited copies of the controls, drawn once and kept in memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from ..edits.edited_controls import EDITS, EditedControls, Unedited
from ..edits.families import SHAM
from .patch_shape import Patches, PatchShape

_PATCHES_OF_EDIT = 24
_MOST_PATCHES = 60_000
_MOST_NUMBERS = 2**28
"""Largest number of float16 values in memory, for large patches."""


@dataclass(frozen=True, eq=False)
class EditedPatches:
    """Patches around random voxels of edits.

    Attributes
    ----------
    patches : tensors, (N, C, p, p[, p]), float16
        One tensor per patch shape.
    voxels : ndarray of int64, (N, 3)
        Central voxels, where an edit has at least half of its effect.
    controls : ndarray of int64, (N,)
        Index of the edited control.
    is_edited : ndarray of bool, (N,)
        False: the edit is a sham.
    """

    patches: Patches
    voxels: np.ndarray
    controls: np.ndarray
    is_edited: np.ndarray

    def __len__(self) -> int:
        return len(self.controls)

    @classmethod
    def joined(cls, parts: "list[EditedPatches]", device: torch.device | str) -> "EditedPatches":
        """Join patches on a device."""
        patches = tuple(torch.cat(each).to(device) for each in zip(*(part.patches for part in parts), strict=True))
        names = ("voxels", "controls", "is_edited")
        return cls(patches, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def only(self, chosen: np.ndarray) -> "EditedPatches":
        """Select patches by a mask (N,)."""
        where = torch.from_numpy(np.flatnonzero(chosen)).to(self.patches[0].device)
        patches = tuple(patch[where] for patch in self.patches)
        return EditedPatches(patches, self.voxels[chosen], self.controls[chosen], self.is_edited[chosen])


def copies_to_draw(
    controls: EditedControls, copies: int, patch_shapes: tuple[PatchShape, ...]
) -> list[tuple[int, int]]:
    """List the edited copies as pairs (copy, index of the control), no more than there is memory for."""
    pairs = list(product(range(copies), range(len(controls.keys))))
    return pairs[: max(1, _most_patches(controls, patch_shapes) // EDITS)]


def draw_edited_patches(
    controls: EditedControls,
    pairs: list[tuple[int, int]],
    patch_shapes: tuple[PatchShape, ...],
    *,
    device: torch.device | str,
    jobs: int,
    step: Callable[[], None],
) -> EditedPatches:
    """Edit copies of the controls and cut patches at random voxels of the edits.

    The result depends on the arguments only, not on the number of threads.

    Parameters
    ----------
    controls : EditedControls
        Its store has some or all of its channels.
    pairs : list of (int, int)
        See `copies_to_draw`.
    patch_shapes : tuple of PatchShape
    device : str or torch.device
        Where the patches are kept.
    jobs : int
        Number of threads.
    step : callable
        Called after each copy.
    """
    per_edit = min(_PATCHES_OF_EDIT, max(1, _most_patches(controls, patch_shapes) // (len(pairs) * EDITS)))
    copies: dict[int, list[int]] = {}
    for copy, index in pairs:
        copies.setdefault(index, []).append(copy)

    def of_control(index: int) -> dict[tuple[int, int], EditedPatches]:
        control = controls.unedited(index)
        return {(copy, index): _of_copy(controls, control, copy, patch_shapes, per_edit) for copy in copies[index]}

    parts: dict[tuple[int, int], EditedPatches] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(of_control, copies):
            parts |= found
            for _ in found:
                step()
    return EditedPatches.joined([parts[pair] for pair in pairs], device)


def _most_patches(controls: EditedControls, patch_shapes: tuple[PatchShape, ...]) -> int:
    voxels = sum(patch_shape.size_vox ** len(patch_shape.axes) for patch_shape in patch_shapes)
    return min(_MOST_PATCHES, _MOST_NUMBERS // (voxels * len(controls.store.channels)))


def _of_copy(
    controls: EditedControls, control: Unedited, copy: int, patch_shapes: tuple[PatchShape, ...], per_edit: int
) -> EditedPatches:
    index, store = control.index, controls.store
    channels, drawn = controls.draw(control, copy)
    volumes = torch.from_numpy(channels[None, controls.channels.index(store.channels)])
    inside = store.grid.brain_mask & control.brain_mask.voxels
    random = np.random.default_rng([controls.seed, index, copy, 1])
    voxels, is_edited = [np.zeros((0, 3), np.int64)], []
    for number, family in enumerate(drawn.families, 1):
        found = np.argwhere((drawn.numbers == number) & inside)
        voxels.append(found[random.choice(len(found), min(per_edit, len(found)), replace=False)])
        is_edited += [family != SHAM] * len(voxels[-1])
    centres = np.concatenate(voxels)
    at, row = torch.from_numpy(centres), torch.zeros(len(centres), dtype=torch.int64)
    patches = tuple(patch_shape.cut(volumes, row, at).half() for patch_shape in patch_shapes)
    return EditedPatches(patches, centres, np.full(len(centres), index), np.array(is_edited, bool))
