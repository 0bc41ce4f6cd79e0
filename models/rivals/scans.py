"""What a rival is given: prepared scans on the template grid, and the controls that it is fitted on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...data_manifests.cohort.subject import participant_of_key
from ...data_manifests.errors import UserError, counted
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ...preprocessing.patches.voxel_mask import VoxelMask
from .presets import CPU, Preset

_MONITORED = 8
"""One control in this many is held back from the training of a network, to stop it early; at least one."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A prepared scan on the template grid.

    Attributes
    ----------
    key : str
        Of the subject; for messages only.
    channels : ndarray, (C, X, Y, Z), float32
        In [0, 1], 0 outside the brain: the modalities, then their derived maps.
    names : tuple of str
        Of the channels, as ``("t1w", "flair", "t1w_junction")``.
    n_modalities : int
        The first so many channels are the modalities.
    inside : ndarray of bool, (X, Y, Z)
        Voxels to be scored: the analysed voxels in the subject's brain.
    """

    key: str
    channels: np.ndarray
    names: tuple[str, ...]
    n_modalities: int
    inside: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """The modalities, (M, X, Y, Z)."""
        return self.channels[: self.n_modalities]


@dataclass(frozen=True, eq=False)
class Controls:
    """Healthy scans that a rival is fitted on. Iteration yields a `Scan` of each, one in memory at a time.

    Attributes
    ----------
    store : VolumeStore
    channels : Channels
    keys : tuple of str
    folder : Path
        Where a rival may keep what is costly, such as checkpoints: a repeated call of `fit` finds it again.
    seed : int
        Of everything random.
    preset : Preset
        Sizes of networks and numbers of steps.
    device : str or torch.device
    jobs : int or None
        Threads; one per core if None.
    encoder_weights : Path or None
        Weights of an encoder that the site supplies, for `feature-inversion`.
    """

    store: VolumeStore
    channels: Channels
    keys: tuple[str, ...]
    folder: Path
    seed: int = 0
    preset: Preset = CPU
    device: torch.device | str = "cpu"
    jobs: int | None = None
    encoder_weights: Path | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Scan]:
        return (self.scan(key) for key in self.keys)

    @property
    def mask(self) -> VoxelMask:
        """The analysed voxels."""
        return self.store.grid

    def scan(self, key: str) -> Scan:
        """Read a control."""
        (row,) = self.store.index([key])
        volumes = self.store.volumes[row].astype(np.float32)
        self.store.release_pages()
        return self.as_scan(key, volumes, self.inside(key))

    def inside(self, key: str) -> np.ndarray:
        """Read which voxels of a control are scored, (X, Y, Z) bool, without its images."""
        (row,) = self.store.index([key])
        return np.asarray(self.store.inside[row]) & self.mask.brain_mask

    def as_scan(self, key: str, channels: np.ndarray, inside: np.ndarray) -> Scan:
        """Return a scan with the channels of these controls."""
        return Scan(key, channels, self.channels.names, len(self.channels.modalities), inside)

    def only(self, keys: Sequence[str], folder: Path) -> "Controls":
        """Select controls, for a fit of their own in a folder of its own."""
        return replace(self, keys=tuple(keys), folder=folder)

    def monitored(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Split the controls into those that a network learns from and those that decide when it stops.

        The scans of a participant stay together.
        """
        people = sorted({participant_of_key(key) for key in self.keys})
        drawn = np.random.default_rng([self.seed, len(people)]).permutation(len(people))
        held_back = {people[index] for index in drawn[: max(len(people) // _MONITORED, 1)]}
        parts = tuple(
            tuple(key for key in self.keys if (participant_of_key(key) in held_back) == is_held_back)
            for is_held_back in (False, True)
        )
        return parts[0], parts[1]


def require_controls(name: str, found: int, needed: int) -> None:
    """Check the number of controls of a fit.

    Raises
    ------
    UserError
        There are too few for the method.
    """
    if found < needed:
        raise UserError(
            f"{name}: found {counted(found, 'control')} to fit it on, expected at least {needed}. Add healthy scans, "
            "or leave this method out."
        )
