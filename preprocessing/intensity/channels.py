"""What the models see of a subject: the modalities on the cohort's scale, then the maps derived from them."""

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
    """An ordered list of images of one subject.

    Attributes
    ----------
    scale : IntensityScale
        Its modalities are the first channels.
    derived : tuple of str
        Maps derived from every modality, in the order of the modalities.
    """

    scale: IntensityScale
    derived: tuple[DerivedMapName, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self.scale.standard)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """``("t1w", "flair", "t1w_junction", ..., "flair_junction", ...)``."""
        return (*self.modalities, *(f"{modality}_{name}" for modality in self.modalities for name in self.derived))

    def chosen(self, which: Literal["modalities", "all"]) -> tuple[str, ...]:
        """Names of the modalities, or of them and their derived maps."""
        return self.names if which == "all" else self.modalities

    def read(self, subject: PreparedImages, grid: Grid) -> np.ndarray:
        """Read a subject's prepared images, and derive the maps.

        Returns
        -------
        ndarray, (C, X, Y, Z), float32
            In [0, 1], 0 outside the subject's brain mask; channels in the order of `names`.

        Raises
        ------
        SubjectError
            As `IntensityScale.read`.
        """
        mask = subject.read_brain_mask(grid)
        images = self.scale.read(subject, grid)
        brains = [Brain(Volume(image, grid), mask) for image in images]
        maps = [brain.derive(name).voxels for brain in brains for name in self.derived]
        return np.stack([*images, *maps])

    def index(self, names: Sequence[str]) -> list[int]:
        """Where some channels stand among all.

        Raises
        ------
        UserError
            One is not among them.
        """
        return channel_index(names, self.names)

    def save(self, folder: Path) -> Path:
        """Write ``channels.json``, whole or not at all."""
        with atomic_write(folder / _FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))
        return folder / _FILE

    @classmethod
    def load(cls, folder: Path) -> "Channels":
        """Read what `save` wrote, to the bit.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        what = "the scale of intensities that the training controls gave, and the maps derived"
        advice = "Run `voxout run` there again."
        content = read_json(folder / _FILE, _Content, what, advice)
        try:
            scale = IntensityScale(content.scale.method, content.scale.standard)
        except ValueError as error:
            raise UserError(f"{private(folder / _FILE)}: {error}, expected {what}. {advice}") from error
        return cls(scale, content.derived)


def channel_index(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Where some channels stand among all.

    Raises
    ------
    UserError
        One is not among them.
    """
    missing = [name for name in names if name not in among]
    if missing:
        raise UserError(
            f"Channels: {', '.join(missing)} not among {', '.join(among)}. Add the modality or the derived map to the "
            "settings of preprocessing and run the stage extract again."
        )
    return [among.index(name) for name in names]
