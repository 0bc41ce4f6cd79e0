"""Training of a rival's network, by the trainer of MONAI that also trains voxout's encoder.

A step is a function of the state and of its number: an interrupted training goes on from its last checkpoint, and
gives the result of an uninterrupted one. Training ends when the loss on held-back controls has not fallen for a
while; the network with the lowest such loss is kept.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import Trainer
from torch import nn

from ...data_manifests.errors import UserError, private
from ..tensor_file import opened_tensors, read_header, write_tensors
from ..training_state import deterministic, load_optimiser, optimiser_tensors

_CHECKS = 25
"""The loss on held-back controls is computed so many times in the longest training."""
_PATIENCE = 6
"""Training stops when so many of them in a row were no better."""
_MONITOR_BATCHES = 4
_MONITOR_SEED, _STEP_SEED = 10**9, 0
_FILE = "network.safetensors"

BatchT = TypeVar("BatchT", covariant=True)


class Batches(Protocol[BatchT]):
    """Batches to learn from, by number."""

    def __getitem__(self, number: int, /) -> BatchT:
        """Return a batch; the same for the same number."""
        ...


Loss = Callable[[nn.Module, Any, torch.Generator], torch.Tensor]
"""Loss of a network on a batch; whatever is random in it comes from the generator."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes
    ----------
    name : str
        Of the method, for messages.
    folder : Path
        Of the checkpoint.
    steps : int
        At most.
    learning_rate : float
        Of Adam.
    seed : int
        Of the initial weights, and of what is random in the loss.
    weight_decay : float
        Of Adam.
    device : str or torch.device
    """

    name: str
    folder: Path
    steps: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.0
    device: torch.device | str = "cpu"

    @property
    def check_every(self) -> int:
        """Steps between two looks at the held-back controls."""
        return max(self.steps // _CHECKS, 1)

    @property
    def identity(self) -> str:
        """What the result depends on, beside the data; a checkpoint of anything else is not used."""
        return json.dumps([self.name, self.steps, self.learning_rate, self.weight_decay, self.seed])


def initial_network(make: Callable[[], nn.Module], seed: int, device: torch.device | str) -> nn.Module:
    """Make a network with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(device)


def train_network(
    network: nn.Module, loss: Loss, batches: Batches[Any], held_back: Batches[Any], plan: Plan
) -> nn.Module:
    """Train a network, or go on from the checkpoint in the folder of the plan.

    Parameters
    ----------
    network : Module
        With its initial weights.
    loss : callable
    batches, held_back : batches
        Of the controls to learn from, and of those that decide when to stop.
    plan : Plan

    Returns
    -------
    Module
        The network with the lowest loss on the held-back controls, in eval mode.

    Raises
    ------
    UserError
        The loss is not finite.
    """
    with deterministic():
        training = _Training(network, loss, batches, held_back, plan)
        training.resume()
        if not training.is_over:
            training.run()
        network.load_state_dict(training.best)
    return network.eval()


class _Training:
    """State of a training.

    Parameters
    ----------
    network, loss, batches, held_back, plan
        As for `train_network`.
    """

    def __init__(self, network: nn.Module, loss: Loss, batches: Batches[Any], held_back: Batches[Any], plan: Plan):
        self.network, self.loss, self.plan = network, loss, plan
        self.batches, self.held_back = batches, held_back
        self.names = [name for name, _ in network.named_parameters()]
        rate, decay = plan.learning_rate, plan.weight_decay
        self.optimiser = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay)
        self.step, self.cpu_s = 0, 0.0
        self.history: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.plan.folder / _FILE

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the loss has not fallen for long enough."""
        if self.step >= self.plan.steps:
            return True
        return bool(self.history) and len(self.history) - 1 - int(np.argmin(self.history)) >= _PATIENCE

    def run(self) -> None:
        trainer = Trainer(
            device=torch.device(self.plan.device),
            max_epochs=1,
            data_loader=range(self.step, self.plan.steps),
            iteration_update=self.update,
            decollate=False,
        )
        trainer.logger.setLevel(logging.CRITICAL)  # errors are reported once, where they are caught
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.after_step)
        trainer.run()

    def update(self, _engine: Engine, step: int) -> dict[str, float]:
        began = time.process_time()
        self.network.train()
        loss = self.loss(self.network, self.batches[step], self.generator(_STEP_SEED + step))
        value = loss.item()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.require_finite(value, step)
        self.step = step + 1
        self.cpu_s += time.process_time() - began
        return {"loss": value}

    def require_finite(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{self.plan.name}: its training diverged, the loss is {value} at step {step}, expected a finite "
                f"number. Choose another seed, or leave this method out, and delete {private(self.file)}."
            )

    def after_step(self, engine: Engine) -> None:
        if self.step % self.plan.check_every and self.step < self.plan.steps:
            return
        self.history.append(self.monitored())
        if self.history[-1] == min(self.history):
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        self.save()
        if self.is_over:
            engine.terminate()

    @torch.no_grad()
    def monitored(self) -> float:
        """Mean loss on the same batches of held-back controls, and with the same random numbers, each time."""
        self.network.eval()
        numbers = range(_MONITOR_BATCHES)
        losses = [self.loss(self.network, self.held_back[n], self.generator(_MONITOR_SEED + n)).item() for n in numbers]
        self.require_finite(value := float(np.mean(losses)), self.step)
        return value

    def generator(self, number: int) -> torch.Generator:
        seed = np.random.SeedSequence([self.plan.seed, number]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.plan.device).manual_seed(int(seed >> 1))

    # -- checkpoint ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimiser.{n}": value for n, value in optimiser_tensors(self.optimiser, self.names).items()}
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
        state = {"step": self.step, "cpu_s": round(self.cpu_s, 3), "history": self.history}
        write_tensors(self.file, arrays, identity=self.plan.identity, state=json.dumps(state))

    def resume(self) -> None:
        """Load the last checkpoint, if there is one of the same training."""
        if not self.file.is_file():
            return
        with opened_tensors(self.file, "checkpoint of a network") as file:
            if file.metadata["identity"] != self.plan.identity:
                return
            tensors = {
                name: torch.from_numpy(file.array(name, tensor.dtype.name, len(tensor.shape)))
                for name, tensor in file.header.items()
            }
            state = json.loads(file.metadata["state"])
        parts = {prefix: _part(tensors, f"{prefix}.") for prefix in ("network", "best", "optimiser")}
        self.network.load_state_dict(parts["network"])
        load_optimiser(self.optimiser, self.names, parts["optimiser"])
        self.best, self.step = parts["best"], state["step"]
        self.history, self.cpu_s = state["history"], state["cpu_s"]


def training_costs(folder: Path) -> list[tuple[int, float]]:
    """Return the steps and processor seconds of each training below a folder."""
    costs = []
    for file in sorted(folder.glob(f"**/{_FILE}")):
        state = json.loads(read_header(file)[1]["state"])
        costs.append((state["step"], state["cpu_s"]))
    return costs


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
