"""Batch norm over the parts of all processes: its mean and variance are those of the whole batch.

torch's `SyncBatchNorm` does the same, on GPUs only.
"""

from collections.abc import Callable
from functools import partial

import torch

from .network import BatchNorm, PatchAutoEncoder
from .processes import Processes

_Forward = Callable[[torch.Tensor], torch.Tensor]


def share_norms(model: PatchAutoEncoder, processes: Processes) -> None:
    """Let the batch norms of a model use the statistics of all processes, where they would use those of their input.

    The model stays as it was for one process, and so do its state and its steps in eval mode.
    """
    if processes.count == 1:
        return
    for norm in [*model.inner_norms(), model.encoder.latent_norm]:
        setattr(norm, "forward", partial(_normalised, norm, norm.forward, processes))  # noqa: B010 (for pyright)


def _normalised(norm: BatchNorm, alone: _Forward, processes: Processes, values: torch.Tensor) -> torch.Tensor:
    """As `forward` of a batch norm; `alone` is its own."""
    if not norm.training:
        return alone(values)
    over = [0, *range(2, values.ndim)]
    around = [1, -1, *[1] * (values.ndim - 2)]
    # Sums of float32 values over a large batch would depend on how it is divided.
    sums = values.sum(over, dtype=torch.float64)
    number = sums.new_tensor([values.numel() / len(sums)])
    *_, n = total = processes.total(torch.cat([sums, number]))
    mean = total[:-1] / n
    centred = values - mean.to(values.dtype).view(around)
    variance = processes.total((centred**2).sum(over, dtype=torch.float64)) / n
    _track(norm, mean.detach(), variance.detach() * n.detach() / (n.detach() - 1))
    scale = (variance + norm.eps).rsqrt().to(values.dtype)
    return centred * (norm.weight * scale).view(around) + norm.bias.view(around)


@torch.no_grad()
def _track(norm: BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Update the running statistics; without a momentum, they are the mean over all batches."""
    assert norm.num_batches_tracked is not None and norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked += 1
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), momentum)
