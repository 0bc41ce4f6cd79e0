"""An encoder on disk, with all that is needed to go on training it: safetensors and JSON, never pickle.

The tensors lie in ``step-<n>.safetensors``; ``checkpoint.json`` names them and is renamed into place last. Whatever
moment a run is killed at, the folder holds one whole checkpoint: the new one or the one before.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.settings import renamed
from ...data_manifests.typed_json import Content, read_json
from ..settings import ModelSettings
from ..tensor_file import canonical, read_header
from .network import PatchAutoEncoder, PatchEncoder
from .patch_shape import PatchShape

_INDEX = "checkpoint.json"
_TENSORS = r"^step-[0-9]+\.safetensors$"
"""The file of tensors lies beside the index: no other name is followed."""
_ADVICE = "Copy the model again, or delete the folder and train again."
TRAINED_BY = {"encoder", "guidance", "training"}
"""Settings that decide what training gives. The others are none of an encoder's: a new name among them spoils none."""


@dataclass(frozen=True)
class TrainingRow:
    """What training looked like after a step; measured in eval mode on fixed batches, so rows can be compared.

    Attributes
    ----------
    step : int
        Steps done.
    phase : {"pretraining", "guided"}
    mse_train, mse_held_out : float
        Mean squared error of the reconstruction; None without held-out controls.
    guidance : float
        The guidance loss, mean over locations, unweighted.
    guidance_weight : float
        lambda, as it was in force.
    outside_share : float
        Share of the controls that did not solve the dual which fall outside its boundary; nu is what it aims at.
    kernel_mean : float
        Mean off-diagonal kernel value between controls at one location: near 0 = saturated, near 1 = flat.
    latent_scale : float
        Root mean square of the codes about their mean.
    effective_rank : float
        Dimensions that the codes fill: exp of the entropy of the covariance's eigenvalues.
    learning_rate : float
    """

    step: int
    phase: str
    mse_train: float
    mse_held_out: float | None
    guidance: float | None
    guidance_weight: float
    outside_share: float | None
    kernel_mean: float | None
    latent_scale: float
    effective_rank: float
    learning_rate: float

    @property
    def mse(self) -> float:
        """Of held-out controls, or where there are none, of those that are trained on."""
        return self.mse_train if self.mse_held_out is None else self.mse_held_out


@dataclass(frozen=True)
class Origin:
    """What an encoder was trained on; a run goes on from a checkpoint only if all of it is the same.

    Attributes
    ----------
    channels : tuple of str
    patch_shapes : tuple of PatchShape
    spacing_mm : float
    mask_hash : str
    subjects_hash : str
        Of the keys of the training and held-out controls: a model that is passed on names nobody.
    seed : int
    """

    channels: tuple[str, ...]
    patch_shapes: Annotated[tuple[PatchShape, ...], Field(validation_alias=renamed("patch_shapes", "windows"))]
    spacing_mm: float
    mask_hash: str
    subjects_hash: str
    seed: int


class _Index(Content):
    tensors: Annotated[str, Field(pattern=_TENSORS)]
    step: Annotated[int, Field(ge=0)]
    origin: Origin
    settings: dict[str, dict[str, Any]]
    history: tuple[TrainingRow, ...]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state of training.

    Attributes
    ----------
    autoencoder : PatchAutoEncoder
    optimiser : dict of tensors
        Adam's state, named ``<parameter>.<quantity>``; on the CPU when loaded.
    settings : ModelSettings
        Of encoder, guidance and training; the other sections come back as the defaults.
    origin : Origin
    step : int
        Steps done.
    history : tuple of TrainingRow
    """

    autoencoder: PatchAutoEncoder
    optimiser: dict[str, torch.Tensor]
    settings: ModelSettings
    origin: Origin
    step: int
    history: tuple[TrainingRow, ...]

    @property
    def encoder(self) -> PatchEncoder:
        return self.autoencoder.encoder

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / _INDEX).exists()

    def save(self, folder: Path) -> Path:
        """Replace the folder's checkpoint by this one."""
        tensors = {f"model.{name}": tensor for name, tensor in self.autoencoder.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        name = f"step-{self.step:06d}.safetensors"
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(canonical(save(tensors)))
        index = {
            "tensors": name,
            "step": self.step,
            "origin": asdict(self.origin),
            "settings": self.settings.model_dump(mode="json", include=TRAINED_BY),
            "history": [asdict(row) for row in self.history],
        }
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1, allow_nan=False))
        for older in folder.glob("step-*.safetensors"):
            if older.name != name:
                older.unlink()
        return folder

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> "Checkpoint":
        """Read what `save` wrote; the auto-encoder comes in eval mode.

        Raises
        ------
        UserError
            No checkpoint, or a damaged one.
        """
        if not cls.exists(folder):
            raise UserError(f"{private(folder, 'its folder')}: holds no trained encoder. Run the stage train first.")
        index = read_json(folder / _INDEX, _Index, "the description of a trained encoder", _ADVICE)
        try:
            settings = ModelSettings.model_validate({name: index.settings[name] for name in TRAINED_BY})
            header, _ = read_header(folder / index.tensors)
            # Judged by its outline first: settings from elsewhere may ask for a network that fills the memory.
            with torch.device("meta"):
                outline = build_autoencoder(settings, index.origin).state_dict()
            if wrong := [name for name, part in outline.items() if header[f"model.{name}"].shape != tuple(part.shape)]:
                raise ValueError(f"{wrong[0]} has another shape than its settings give")
            tensors = load_file(folder / index.tensors)
            weights = _part(tensors, "model.")
            if broken := [name for name, part in weights.items() if not bool(torch.isfinite(part).all())]:
                raise ValueError(f"{broken[0]} is not finite")
            if dead := [name for name, part in weights.items() if _is_weight(name, part) and not bool(part.any())]:
                raise ValueError(f"{dead[0]} is 0 throughout")
            with torch.random.fork_rng(devices=[]):  # the fresh weights are drawn for nothing
                autoencoder = build_autoencoder(settings, index.origin).to(device).eval()
            autoencoder.load_state_dict(weights)
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, ValueError) as error:
            found = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise UserError(
                f"{private(folder, 'its folder')}: its checkpoint is damaged or of another version "
                f"({found.splitlines()[0]}), expected a trained encoder. {_ADVICE}"
            ) from error
        return cls(autoencoder, _part(tensors, "optimiser."), settings, index.origin, index.step, index.history)


def build_autoencoder(settings: ModelSettings, origin: Origin) -> PatchAutoEncoder:
    """The network of the settings, with fresh weights from torch's random numbers."""
    return PatchAutoEncoder(len(origin.channels), origin.patch_shapes, settings.encoder)


def _is_weight(name: str, part: torch.Tensor) -> bool:
    """Of a convolution or a linear layer; biases and counters may well be 0."""
    return name.endswith("weight") and part.ndim > 1


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
