"""Checkpoints of the encoder, with the state needed to resume training: safetensors and JSON, without pickle.

The tensors are in ``step-<n>.safetensors``; ``checkpoint.json`` names this file and is renamed into place last. If a
run is killed, the folder still holds one complete checkpoint: the new one or the previous one.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
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
"""Valid names of the tensor file, which is in the folder of the index."""
_ADVICE = "Copy the model again, or delete the folder and train again."
TRAINED_BY = {"encoder", "guidance", "training", "contrast"}
"""Sections of settings that determine the result of training. Others are not stored, so changes there are harmless."""
_OPTIONAL = "contrast"
"""Section that is stored only if its term is on; encoders of before have none."""


@dataclass(frozen=True)
class TrainingRow:
    """Training metrics after a step, measured in eval mode on fixed batches, so that rows can be compared.

    Attributes
    ----------
    step : int
        Steps done.
    phase : {"pretraining", "guided"}
    mse_train, mse_held_out : float
        Mean squared reconstruction error; `mse_held_out` is None without held-out controls.
    guidance : float
        Unweighted guidance loss, mean over voxels.
    guidance_weight : float
        Current value of lambda.
    outside_share : float
        Fraction of the controls held back from the one-class SVM that are outliers; the target is nu.
    kernel_mean : float
        Mean kernel value between different controls at the same voxel; near 0: saturated, near 1: flat.
    latent_scale : float
        Root mean square of the latents about their mean.
    effective_rank : float
        Effective rank of the latents: exp of the entropy of the eigenvalues of their covariance.
    learning_rate : float
    contrast : float or None
        Unweighted contrast loss; None without this term and before the guided steps.
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
    contrast: float | None = None

    @property
    def mse(self) -> float:
        """Error of the held-out controls or, without any, of the training controls."""
        return self.mse_train if self.mse_held_out is None else self.mse_held_out


@dataclass(frozen=True)
class Origin:
    """Training data of an encoder; a run resumes from a checkpoint only if all fields are equal.

    Attributes
    ----------
    channels : tuple of str
    patch_shapes : tuple of PatchShape
    spacing_mm : float
    mask_hash : str
    subjects_hash : str
        Hash of the keys of the training and held-out controls, so that a shared model contains no names.
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
    """State of a training.

    Attributes
    ----------
    autoencoder : PatchAutoEncoder
    optimiser : dict of tensors
        State of Adam, named ``<parameter>.<quantity>``; on the CPU after loading.
    settings : ModelSettings
        Only the sections of `TRAINED_BY` are stored; the others have default values after loading.
    origin : Origin
    step : int
        Steps done.
    history : tuple of TrainingRow
    contrast : dict of tensors
        Slope and offset of the contrast loss; empty without this term. On the CPU after loading.
    """

    autoencoder: PatchAutoEncoder
    optimiser: dict[str, torch.Tensor]
    settings: ModelSettings
    origin: Origin
    step: int
    history: tuple[TrainingRow, ...]
    contrast: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def encoder(self) -> PatchEncoder:
        """Encoder without its decoder."""
        return self.autoencoder.encoder

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether the folder holds a checkpoint."""
        return (folder / _INDEX).exists()

    def save(self, folder: Path) -> Path:
        """Write this checkpoint to the folder, in place of an earlier one."""
        tensors = {f"model.{name}": tensor for name, tensor in self.autoencoder.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser.items()}
        tensors |= {f"contrast.{name}": tensor for name, tensor in self.contrast.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        name = f"step-{self.step:06d}.safetensors"
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(canonical(save(tensors)))
        index = {
            "tensors": name,
            "step": self.step,
            "origin": asdict(self.origin),
            "settings": trained_by(self.settings),
            "history": [_without_unused(asdict(row)) for row in self.history],
        }
        with atomic_write(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1, allow_nan=False))
        for older in folder.glob("step-*.safetensors"):
            if older.name != name:
                older.unlink()
        return folder

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> "Checkpoint":
        """Load a saved checkpoint; the auto-encoder is in eval mode.

        Raises
        ------
        UserError
            There is no checkpoint, or it is damaged.
        """
        if not cls.exists(folder):
            raise UserError(
                f"{private(folder, 'its folder')}: found no trained encoder, expected {_INDEX}. "
                "Run the stage train first."
            )
        index = read_json(folder / _INDEX, _Index, "the description of a trained encoder", _ADVICE)
        try:
            names = TRAINED_BY if _OPTIONAL in index.settings else TRAINED_BY - {_OPTIONAL}
            settings = ModelSettings.model_validate({name: index.settings[name] for name in names})
            header, _ = read_header(folder / index.tensors)
            # Shapes are checked on the meta device first: untrusted settings could ask for a network that fills memory.
            with torch.device("meta"):
                outline = build_autoencoder(settings, index.origin).state_dict()
            if wrong := [name for name, part in outline.items() if header[f"model.{name}"].shape != tuple(part.shape)]:
                raise ValueError(f"{wrong[0]} does not have the shape given by the settings")
            tensors = load_file(folder / index.tensors)
            weights = _part(tensors, "model.")
            if broken := [name for name, part in weights.items() if not bool(torch.isfinite(part).all())]:
                raise ValueError(f"{broken[0]} is not finite")
            if zero := [name for name, part in weights.items() if _is_weight(name, part) and not bool(part.any())]:
                raise ValueError(f"{zero[0]} is 0 everywhere")
            with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced below
                autoencoder = build_autoencoder(settings, index.origin).to(device).eval()
            autoencoder.load_state_dict(weights)
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{private(folder, 'its folder')}: the encoder was trained with "
                f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}, which this version does not know. Train "
                "it again: run `voxout run` there with another output folder."
            ) from error
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, ValueError) as error:
            found = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise UserError(
                f"{private(folder, 'its folder')}: checkpoint is damaged or of another version "
                f"({found.splitlines()[0]}), expected a trained encoder. {_ADVICE}"
            ) from error
        optimiser, contrast = _part(tensors, "optimiser."), _part(tensors, "contrast.")
        return cls(autoencoder, optimiser, settings, index.origin, index.step, index.history, contrast)


def trained_by(settings: ModelSettings) -> dict[str, dict[str, Any]]:
    """Return the settings that determine the result of training, by section, without a term that is off."""
    sections = settings.model_dump(mode="json", include=TRAINED_BY)
    return sections if settings.contrast.weight > 0 else {n: s for n, s in sections.items() if n != _OPTIONAL}


def build_autoencoder(settings: ModelSettings, origin: Origin) -> PatchAutoEncoder:
    """Build the network of the settings, with random initial weights from torch's generator."""
    return PatchAutoEncoder(len(origin.channels), origin.patch_shapes, settings.encoder)


def _is_weight(name: str, part: torch.Tensor) -> bool:
    """Whether a tensor is the weight of a convolution or linear layer; biases and counters may be 0."""
    return name.endswith("weight") and part.ndim > 1


def _without_unused(row: dict[str, Any]) -> dict[str, Any]:
    """Leave the contrast loss out of a row that has none."""
    return {name: value for name, value in row.items() if name != "contrast" or value is not None}


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
