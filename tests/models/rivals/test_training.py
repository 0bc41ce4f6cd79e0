"""Training of a rival's network: seeds, resumption, early stopping, divergence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from voxout.data_manifests.errors import UserError
from voxout.models.rivals.registry import ENTRIES, make
from voxout.models.rivals.training import Plan, initial_network, train_network, training_costs
from voxout.models.tensor_file import read_header

from .small_heads import SMALL, brain, controls, scan

NETWORKS = [name for name, entry in ENTRIES.items() if getattr(make(name), "is_costly", False) and name != "learned"]
SHORT = replace(SMALL, steps=6, encoder_steps=10, long_steps=6)


class _Numbers:
    """Batches of random numbers."""

    def __init__(self, seed: int):
        self.seed = seed

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, number]).normal(size=(8, 3)).astype(np.float32))


def _loss(network: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(batch.shape, generator=generator)
    return (network(batch + 0.1 * noise) - batch.sum(dim=1, keepdim=True)).square().mean()


def _plan(folder: Path, **changes: object) -> Plan:
    return replace(Plan("line", folder, 50, 1e-2, 0), **changes)


def _network() -> nn.Module:
    return initial_network(lambda: nn.Linear(3, 1), 0, "cpu")


def _interrupted_loss(steps: int):
    left = [steps]

    def loss(network, batch, generator):
        if network.training:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return _loss(network, batch, generator)

    return loss


def test_an_interrupted_training_gives_the_result_of_an_uninterrupted_one(tmp_path):
    whole = train_network(_network(), _loss, _Numbers(1), _Numbers(2), _plan(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train_network(_network(), _interrupted_loss(31), _Numbers(1), _Numbers(2), _plan(tmp_path / "cut"))
    resumed = train_network(_network(), _interrupted_loss(25), _Numbers(1), _Numbers(2), _plan(tmp_path / "cut"))
    assert torch.equal(whole.weight, resumed.weight)
    # A finished training is not repeated.
    again = train_network(_network(), _interrupted_loss(0), _Numbers(1), _Numbers(2), _plan(tmp_path / "cut"))
    assert torch.equal(whole.weight, again.weight)
    ((steps, cpu_s),) = training_costs(tmp_path / "cut")
    assert steps == 50
    assert cpu_s > 0


def test_the_network_with_the_lowest_loss_on_held_back_controls_is_kept_and_training_stops(tmp_path):
    class Far(_Numbers):
        """Held-back numbers for which learning soon makes matters worse."""

        def __getitem__(self, number: int) -> torch.Tensor:
            return -super().__getitem__(number)

    def opposite(network, batch, generator):
        return _loss(network, batch, generator) if network.training else -_loss(network, batch, generator)

    plan = _plan(tmp_path, steps=1000, learning_rate=1e-3)
    train_network(_network(), opposite, _Numbers(1), Far(2), plan)
    state = json.loads(read_header(tmp_path / "network.safetensors")[1]["state"])
    assert state["step"] < 1000
    assert len(state["history"]) - 1 - int(np.argmin(state["history"])) == 6


def test_a_training_that_diverges_says_so(tmp_path):
    def nan(network, batch, generator):
        return _loss(network, batch, generator) * float("nan")

    with pytest.raises(UserError, match=r"line: its training diverged, the loss is nan at step 0"):
        train_network(_network(), nan, _Numbers(1), _Numbers(2), _plan(tmp_path))


def test_a_checkpoint_of_another_seed_is_not_used(tmp_path):
    one = train_network(_network(), _loss, _Numbers(1), _Numbers(2), _plan(tmp_path))
    other = train_network(_network(), _loss, _Numbers(1), _Numbers(2), _plan(tmp_path, learning_rate=2e-2))
    assert not torch.equal(one.weight, other.weight)


@pytest.fixture
def every_code_is_unlikely(monkeypatch):
    """After a few steps no code is as unlikely as those that are drawn again, and the map would be 0."""
    monkeypatch.setattr("voxout.models.rivals.vqvae_transformer._UNLIKELY", 0.5)


@pytest.mark.usefixtures("every_code_is_unlikely")
@pytest.mark.parametrize("name", NETWORKS)
def test_two_runs_with_one_seed_agree_to_the_byte(tmp_path, name):
    maps = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        rival = make(name)
        rival.fit(controls(tmp_path / folder, count=8, preset=SHORT))
        maps.append(np.asarray(rival.score(scan(brain(3)))))
        torch.rand(3)  # the state of torch's generator does not matter
    assert maps[0].tobytes() == maps[1].tobytes()
    assert np.ptp(maps[0]) > 0
    assert maps[0].shape == scan(brain(3)).inside.shape


@pytest.mark.usefixtures("every_code_is_unlikely")
@pytest.mark.parametrize("name", ["vqvae-transformer", "patched-diffusion", "feature-inversion"])
@pytest.mark.parametrize("stopped_at", [0, 4])
def test_an_interrupted_fit_goes_on_and_a_finished_first_network_is_not_trained_again(
    tmp_path, monkeypatch, name, stopped_at
):
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    whole, own = make(name), controls(tmp_path / "cut", count=8, preset=SHORT)
    whole.fit(controls(tmp_path / "whole", count=8, preset=SHORT))
    steps, loss = [], type(whole).loss

    def interrupted(self, network, batch, generator):
        if network.training:
            steps.append(None)
            if len(steps) > stopped_at:
                raise KeyboardInterrupt
        return loss(self, network, batch, generator)

    with monkeypatch.context() as patch:
        patch.setattr(type(whole), "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(name).fit(own)
    first = {path: path.stat().st_mtime_ns for path in own.folder.rglob("network.safetensors")}
    finished = {path for path in first if json.loads(read_header(path)[1]["state"])["step"] == SHORT.steps}
    assert len(finished) == (name != "patched-diffusion")
    resumed = make(name)
    resumed.fit(own)
    assert all(path.stat().st_mtime_ns == first[path] for path in finished)
    assert whole.score(scan(brain(3))).tobytes() == resumed.score(scan(brain(3))).tobytes()
