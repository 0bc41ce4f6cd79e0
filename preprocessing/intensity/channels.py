"""Input channels of the models: the standardised modalities, followed by the maps derived from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume
from ...data_manifests.terms import Modality
from ...data_manifests.typed_json import Content, read_json
from ..prepared_images import PreparedImages
from ..settings import DerivedMapName, IntensityMethod
from .derived_maps import Brain
from .standardisation import IntensityScale

_FILE = "channels.json"


class _Scale(Content):
    method: IntensityMethod
    standard: Annotated[dict[Modality, tuple[float, ...]], Field(min_length=1)]


class _Content(Content):
    scale: _Scale
    derived: tuple[DerivedMapName, ...]


@dataclass(frozen=True)
class Channels:
    """Ordered input channels of the models.

    Attributes
    ----------
    scale : IntensityScale
        Intensity scale; its modalities are the first channels.
    derived : tuple of str
        Names of the maps derived from every modality.
    """

    scale: IntensityScale
    derived: tuple[DerivedMapName, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities, in the order of the channels."""
        return tuple(self.scale.standard)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """``("t1w", "flair", "t1w_junction", ..., "flair_junction", ...)``."""
        return (*self.modalities, *(f"{modality}_{name}" for modality in self.modalities for name in self.derived))

    def chosen(self, which: Literal["modalities", "all"]) -> tuple[str, ...]:
        """Names of the modalities, or of all channels."""
        return self.names if which == "all" else self.modalities

    def read(self, subject: PreparedImages, grid: Grid) -> np.ndarray:
        """Read a subject's prepared images, standardise them and compute the derived maps.

        Returns
        -------
        ndarray, (C, X, Y, Z), float32
            In [0, 1], 0 outside the subject's brain mask; channels in the order of `names`.

        Raises
        ------
        SubjectError
            As `IntensityScale.read`.
        """
        return self.with_derived(self.scale.read(subject, grid), subject.read_brain_mask(grid))

    def with_derived(self, images: Sequence[np.ndarray] | np.ndarray, brain_mask: Volume) -> np.ndarray:
        """Append the derived maps to standardised images.

        Parameters
        ----------
        images : sequence of ndarray, (X, Y, Z)
            One per modality, in [0, 1], 0 outside the brain.
        brain_mask : Volume, bool

        Returns
        -------
        ndarray, (C, X, Y, Z), float32
        """
        brains = [Brain(brain_mask.with_voxels(image), brain_mask) for image in images]
        return np.stack([*images, *(brain.derive(name).voxels for brain in brains for name in self.derived)])

    def index(self, names: Sequence[str]) -> list[int]:
        """Positions of some channels among all.

        Raises
        ------
        UserError
            A channel does not exist.
        """
        return channel_index(names, self.names)

    def save(self, folder: Path) -> Path:
        """Write ``channels.json`` atomically."""
        with atomic_write(folder / _FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))
        return folder / _FILE

    @classmethod
    def load(cls, folder: Path) -> "Channels":
        """Load what `save` wrote, bit-identical.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        what = "the intensity scale of the training controls and the names of the derived maps"
        advice = "Run `voxout run` there again."
        content = read_json(folder / _FILE, _Content, what, advice)
        try:
            scale = IntensityScale(content.scale.method, content.scale.standard)
        except ValueError as error:
            raise UserError(f"{private(folder / _FILE)}: {error}, expected {what}. {advice}") from error
        return cls(scale, content.derived)


def channel_index(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Positions of some channels among all.

    Raises
    ------
    UserError
        A channel does not exist.
    """
    missing = [name for name in names if name not in among]
    if missing:
        raise UserError(
            f"Channels: {', '.join(missing)} not found, expected some of {', '.join(among)}. Add the modality or the "
            "derived map to the settings of preprocessing and run the stage extract again."
        )
    return [among.index(name) for name in names]
