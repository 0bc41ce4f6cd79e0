"""Contrast term of the guided steps: latents of edited patches are told from those of healthy controls there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ...data_manifests.errors import UserError
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..edits.edited_controls import EditedControls
from ..settings import ContrastSettings
from .contrast_loss import ContrastLoss
from .edited_patches import copies_to_draw, draw_edited_patches
from .network import PatchEncoder
from .patch_shape import PatchShape
from .processes import ALONE, Processes
from .samplers import MONITOR, ContrastBatch, ContrastPatches, controls_at_voxels, volumes_on
from .schedule import FEWEST_FOR_CONTRAST

_VOXELS_PER_STEP = 96
_CONTROLS_PER_VOXEL = 25
_SUPPORT_SHARE = 0.8
"""Fraction of a voxel's controls in the support; among the others is the edited control before the edit."""
_LEAST_SHARE = 0.05
"""Fraction of the edited patches that may be left out, so that more controls are used for the others."""


@dataclass(eq=False)
class ContrastTerm:
    """Edits of the controls, batches of them, and the loss.

    Attributes
    ----------
    controls : EditedControls
        Its store has the channels of the encoder.
    copies : int
        Edited copies of each control.
    patch_shapes : tuple of PatchShape
    loss : ContrastLoss
        On the device of the batches.
    device : str or torch.device
    processes : Processes
    batches : ContrastPatches or None
        None before `draw`.
    """

    controls: EditedControls
    copies: int
    patch_shapes: tuple[PatchShape, ...]
    loss: ContrastLoss
    device: torch.device | str
    processes: Processes = ALONE
    batches: ContrastPatches | None = None

    @classmethod
    def start(
        cls,
        store: VolumeStore,
        channels: Channels | None,
        keys: Sequence[str],
        settings: ContrastSettings,
        patch_shapes: tuple[PatchShape, ...],
        seed: int,
        device: torch.device | str,
        processes: Processes = ALONE,
    ) -> "ContrastTerm":
        """Return the term before the edits are drawn; `channels` are those of the store, and possibly more."""
        if channels is None:
            raise ValueError("the contrast term needs the channels of the volume store")
        controls = EditedControls(store, tuple(keys), channels, settings.families, seed)
        return cls(controls, settings.copies, patch_shapes, ContrastLoss().to(device), device, processes)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Edited copies, see `copies_to_draw`."""
        return copies_to_draw(self.controls, self.copies, self.patch_shapes)

    def draw(self, step: Callable[[], None]) -> None:
        """Draw the edited patches; `step` is called after each of the `pairs`.

        Raises
        ------
        UserError
            Half of the edited voxels are in the brain masks of too few controls, or there was no room for edits.
        """
        store, rows = self.controls.store, self.controls.store.index(self.controls.keys)
        edited = draw_edited_patches(
            self.controls, self.pairs, self.patch_shapes, device=self.device, jobs=torch.get_num_threads(), step=step
        )
        counts = controls_at_voxels(store.inside, rows, edited.voxels)
        n_controls = _controls_for(counts)
        edited = edited.only(counts >= n_controls)
        if not edited.is_edited.any():
            raise UserError(
                "Contrast with edits: found no room for edits in the brains of the training controls. Check the "
                "figures of their preparation, or set models.contrast.weight to 0."
            )
        volumes, size, seed = volumes_on(store, self.device), (_VOXELS_PER_STEP, n_controls), self.controls.seed
        self.batches = ContrastPatches(volumes, store.inside, rows, edited, self.patch_shapes, *size, seed)

    def of_step(self, encoder: PatchEncoder, step: int) -> torch.Tensor:
        """Compute the loss of the batch of a step, or this process's summand of it; the edits have been drawn."""
        assert self.batches is not None
        return self._of_batch(encoder, replace(self.batches, processes=self.processes)[step], self.processes)

    @torch.no_grad()
    def monitored(self, encoder: PatchEncoder) -> float:
        """Compute the loss of a fixed batch, for an encoder in eval mode; the edits have been drawn."""
        assert self.batches is not None
        return self._of_batch(encoder, replace(self.batches, stream=MONITOR)[3], ALONE).item()

    def _of_batch(self, encoder: PatchEncoder, batch: ContrastBatch, processes: Processes) -> torch.Tensor:
        # Encoded together: the batch norm of the latents has to be the same for healthy and edited patches.
        around = batch.healthy[0].shape[:2]
        pairs = zip(batch.healthy, batch.drawn, strict=True)
        latents = encoder(tuple(torch.cat([healthy.flatten(0, 1), drawn]) for healthy, drawn in pairs))
        healthy, drawn = latents.split([around.numel(), around[0]])
        healthy = healthy.unflatten(0, around)
        support = round(_SUPPORT_SHARE * around[1])
        return self.loss(healthy[:, :support], healthy[:, support:], drawn, batch.is_edited, processes)


def _controls_for(counts: np.ndarray) -> int:
    """Return the number of controls at each edited voxel, given how many have brain at each."""
    if len(counts) and np.median(counts) < FEWEST_FOR_CONTRAST:
        raise UserError(
            f"Contrast with edits: half of the edited voxels are in the brain masks of at most {np.median(counts):.0f} "
            f"training controls, expected at least {FEWEST_FOR_CONTRAST}. Check the figures of their preparation, or "
            "add controls."
        )
    at_nearly_all = int(np.quantile(counts, _LEAST_SHARE, method="lower")) if len(counts) else 0
    return min(_CONTROLS_PER_VOXEL, max(at_nearly_all, FEWEST_FOR_CONTRAST))
