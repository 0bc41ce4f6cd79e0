"""Processes that train one encoder together, each on its part of every batch.

The loss of a step is a mean over the whole batch. Each process computes its *summand*: the sum over its own part,
divided by the size of the whole batch. The gradients of all summands are added up in one message, and all processes
take the same step, so that the result does not depend on their number, up to rounding.

torch's `DistributedDataParallel` averages gradients in the same way, but needs one forward call of one module for each
step, and parts of equal size; here, a step calls parts of the model on several batches.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """The processes of a training; by default this one alone.

    Attributes
    ----------
    rank : int
        Number of this process.
    count : int
    device : str or torch.device
        Device of this process, which messages are sent from.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def joined(cls, device: torch.device | str) -> "Processes":
        """Return those of torch's process group, after ``torch.distributed.init_process_group``."""
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    # -- parts of a batch ----------------------------------------------------------------------------------------
    @property
    def part(self) -> slice:
        """The items of a batch that this process works on."""
        return slice(self.rank, None, self.count)

    def share(self, size: int) -> float:
        """Fraction of a batch of this size that this process works on: the weight of a mean over its part."""
        return len(range(size)[self.part]) / size

    # -- messages ------------------------------------------------------------------------------------------------
    def summand(self, values: torch.Tensor) -> torch.Tensor:
        """Return this process's summand of the mean of all values; parts may be of any size, and empty."""
        if self.count == 1:
            return values.mean()
        return values.sum() / self.total(torch.tensor(float(values.numel()), dtype=torch.float64))

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the first axis, of all processes; differentiable."""
        if self.count == 1:
            return values.mean(dim=0)
        return self.total(values.sum(dim=0)) / self.total(values.new_tensor(float(len(values))))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Add up the tensors of all processes; differentiable."""
        if self.count == 1:
            return values
        return _Total.apply(values.to(self.device))

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients by their sums over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def of_first(self, compute: Callable[[], Any]) -> Any:
        """Return what the first process computes, which JSON can hold; the others wait for it."""
        if self.count == 1:
            return compute()
        text = json.dumps(compute()).encode() if self.leads else b""
        size = torch.tensor([len(text)], device=self.device)
        dist.broadcast(size, 0)
        message = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.leads:
            message.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(message, 0)
        return json.loads(message.cpu().numpy().tobytes())

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.total(torch.zeros(1)).item()  # on a GPU, only reading the result waits


ALONE = Processes()


class _Total(torch.autograd.Function):
    """Sum over the processes. Each loss is a sum over them, too, so their gradients add up in the same way."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed
