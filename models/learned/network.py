"""Small network that tells edited voxels from unedited ones by their `Context`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import skip_init

from ..tensor_file import TensorFile

_WIDTH = 96
_VOXELS_AT_ONCE = 65_536
_BATCH = 4096
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-3
_SMALLEST_SD = 1e-3


class EditClassifier(nn.Module):
    """Network with two hidden layers; its logit is higher where a voxel is more likely edited.

    Parameters
    ----------
    mean, sd : Tensor, (d,)
        Mean and standard deviation of the inputs in training.
    """

    mean: torch.Tensor
    sd: torch.Tensor

    def __init__(self, mean: torch.Tensor, sd: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        # Without the random weights of PyTorch: networks are trained in threads, which share its random numbers.
        layers = [skip_init(nn.Linear, n, m) for n, m in ((len(mean), _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 1))]
        self.layers = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    @classmethod
    def initial(cls, samples: Sequence["Samples"], generator: torch.Generator) -> "EditClassifier":
        """Create a network with random weights, for the inputs of some samples."""
        n = sum(len(part.inputs) for part in samples)
        mean = sum(part.inputs.sum(axis=0, dtype=np.float64) for part in samples) / n
        variance = sum(((part.inputs - mean) ** 2).sum(axis=0) for part in samples) / (n - 1)
        sd = np.maximum(np.sqrt(variance), _SMALLEST_SD)
        network = cls(torch.from_numpy(np.float32(mean)), torch.from_numpy(np.float32(sd)))
        for layer in network.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        return network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (n,) of inputs (n, d)."""
        return self.layers((inputs - self.mean) / self.sd)[:, 0]

    @torch.inference_mode()
    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (n,) float32 of inputs (n, d), computed in blocks."""
        device = next(self.parameters()).device
        blocks = (inputs[start : start + _VOXELS_AT_ONCE] for start in range(0, len(inputs), _VOXELS_AT_ONCE))
        return np.concatenate([self(torch.from_numpy(block).to(device)).cpu().numpy() for block in blocks])

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and buffers, by name."""
        return {name: value.cpu().numpy() for name, value in self.state_dict().items()}

    @classmethod
    def read(cls, file: TensorFile, prefix: str, size: int) -> "EditClassifier":
        """Read the `arrays` of a network for inputs of a size d, whose names in the file start with a prefix.

        Raises
        ------
        ValueError, KeyError
            An array is missing or has another shape.
        """
        network = cls(torch.zeros(size), torch.ones(size))
        state = {}
        for name, value in network.state_dict().items():
            state[name] = torch.from_numpy(file.array(f"{prefix}{name}", "float32", value.ndim))
            if state[name].shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}")
        network.load_state_dict(state)
        return network.eval()


@dataclass(frozen=True, eq=False)
class Samples:
    """Voxels to learn from.

    Attributes
    ----------
    inputs : ndarray, (n, d), float32
    families : ndarray of int8, (n,)
        Index in `FAMILIES` of the edit at the voxel; -1 in unedited tissue and in shams.
    """

    inputs: np.ndarray
    families: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Samples"]) -> "Samples":
        """Join the samples of several copies."""
        return cls(np.concatenate([part.inputs for part in parts]), np.concatenate([part.families for part in parts]))


def batches(
    samples: Sequence[Samples], steps: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield random inputs and labels (1: edited), with equal numbers of edited and unedited voxels.

    The samples are not joined, since several networks learn from most of them at the same time.
    """
    families = np.concatenate([part.families for part in samples])
    groups = [torch.from_numpy(np.flatnonzero((families >= 0) == label)) for label in (False, True)]
    labels = torch.repeat_interleave(torch.tensor([0.0, 1.0]), _BATCH // 2)
    firsts = np.cumsum([0, *(len(part.families) for part in samples)])
    for _ in range(steps):
        draws = [group[torch.randint(len(group), (_BATCH // 2,), generator=generator)] for group in groups]
        yield torch.from_numpy(_inputs_of(samples, firsts, torch.cat(draws).numpy())), labels


def _inputs_of(samples: Sequence[Samples], firsts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Collect the inputs (n, d) of the voxels `chosen` (n,), numbered over all samples; `firsts`: first of each."""
    out = np.empty((len(chosen), samples[0].inputs.shape[1]), np.float32)
    order = np.argsort(chosen)
    ends = np.searchsorted(chosen[order], firsts)
    for part, first, start, stop in zip(samples, firsts, ends, ends[1:], strict=False):
        at = order[start:stop]
        out[at] = part.inputs[chosen[at] - first]
    return out


def train_classifier(
    samples: Sequence[Samples], *, seed: int, steps: int, device: torch.device | str = "cpu"
) -> EditClassifier:
    """Train a network on edited and unedited voxels.

    Parameters
    ----------
    samples : sequence of Samples
        Of one or several controls.
    seed : int
    steps : int
        Training steps, of 4,096 voxels each.
    device : str or torch.device
    """
    # MONAI takes seconds to import, and a model is applied without it.
    from ignite.engine import Events
    from monai.engines.trainer import SupervisedTrainer

    generator = torch.Generator().manual_seed(seed)
    network = EditClassifier.initial(samples, generator).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
    trainer = SupervisedTrainer(
        device=torch.device(device),
        max_epochs=1,
        epoch_length=steps,
        train_data_loader=batches(samples, steps, generator),
        network=network,
        optimizer=optimizer,
        loss_function=nn.functional.binary_cross_entropy_with_logits,
        prepare_batch=lambda batch, device, *_, **__: tuple(part.to(device) for part in batch),
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    trainer.logger.setLevel(logging.CRITICAL)  # errors are reported once, where they are caught
    trainer.run()
    return network.eval()
