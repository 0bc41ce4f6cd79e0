"""Training of one encoder, as a value that can be handed to other processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from ...models.settings import ModelSettings
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore

if TYPE_CHECKING:
    from ...models.encoder.checkpoint import Checkpoint
    from ...models.encoder.processes import Processes


@dataclass(frozen=True)
class EncoderTask:
    """All that the training of an encoder needs but devices.

    Attributes
    ----------
    patches : Path
        Folder of the volume store of the controls.
    settings : ModelSettings
    out : Path
        Folder of the checkpoint.
    train, held_out : tuple of str
        Keys of controls.
    seed : int
    tensorboard : Path
        Folder for curves.
    """

    patches: Path
    settings: ModelSettings
    out: Path
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int
    tensorboard: Path

    def run(
        self, device: str, progress: Callable[[int, int], None], processes: "Processes | None" = None
    ) -> "Checkpoint":
        """Train, or resume; `processes` are those that do it together, by default this one alone."""
        from ...models.encoder.processes import ALONE
        from ...models.encoder.training import train_encoder

        channels = Channels.load(self.patches)
        return train_encoder(
            VolumeStore.open(self.patches).only(channels.chosen(self.settings.encoder.channels)),
            self.settings,
            self.out,
            train=self.train,
            held_out=self.held_out,
            seed=self.seed,
            channels=channels,
            device=device,
            tensorboard=self.tensorboard,
            progress=progress,
            processes=processes or ALONE,
        )

    def to_json(self) -> bytes:
        """Return the task as JSON."""
        return _JSON.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> "EncoderTask":
        """Return the task of `to_json`."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(EncoderTask)
