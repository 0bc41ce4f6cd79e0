"""Training by two processes, which torchrun starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from voxout.data_manifests.errors import UserError
from voxout.models.encoder import contrast_term, training
from voxout.models.encoder.checkpoint import Checkpoint
from voxout.models.encoder.processes import Processes

from .training_program import EDITED_VOXELS, KEYS, SETTINGS, VOXELS, main, store_of_brains

PROGRAM = Path(__file__).with_name("training_program.py")


def torchrun(*words: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, PROGRAM]
    return subprocess.run(
        [*map(str, (*command, *words))],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """As `main` of the program sets them in its own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_VOXELS_PER_STEP", VOXELS)
        patch.setattr(contrast_term, "_VOXELS_PER_STEP", EDITED_VOXELS)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    main(folder)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of which one process was killed in the guided steps, after a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    assert torchrun(folder, 9).returncode != 0
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "losses.json"}


def assert_close(one, other):
    """The losses agree, and the weights; biases before a batch norm are moved by rounding alone, without effect."""
    (first, losses), (second, others) = (
        (Checkpoint.load(folder), json.loads((folder / "losses.json").read_text())) for folder in (one, other)
    )
    common = losses.keys() & others.keys()
    assert len(common) >= 4
    assert [losses[step] for step in common] == pytest.approx([others[step] for step in common], rel=1e-4)
    assert first.step == second.step == 12
    for row, same in zip(first.history, second.history, strict=True):
        for name in ("mse_train", "mse_held_out", "guidance", "kernel_mean", "latent_scale"):
            assert getattr(row, name) == pytest.approx(getattr(same, name), rel=1e-2), name
    assert first.history[-1].contrast == pytest.approx(second.history[-1].contrast, rel=1e-3)
    weights = second.autoencoder.state_dict()
    for name, value in first.autoencoder.state_dict().items():
        if value.ndim > 1:
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-3 * float(value.abs().max()), msg=name)
    assert first.contrast.keys() == second.contrast.keys() == {"slope", "offset"}
    for name, value in first.contrast.items():
        torch.testing.assert_close(value, second.contrast[name], rtol=1e-4, atol=1e-6)


def test_two_processes_give_the_encoder_of_one(alone, together):
    """With parts of unequal size, and with all terms of the loss."""
    assert_close(alone, together)
    assert len(list(together.glob("step-*.safetensors"))) == 1


def test_killed_training_resumes_exactly(together, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "encoder")
    assert Checkpoint.load(folder).step == 8
    assert torchrun(folder).returncode == 0
    assert files(folder) == files(together)


def test_another_number_of_processes_goes_on(alone, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "encoder")
    main(folder)
    assert_close(alone, folder)


def test_fewer_voxels_than_processes():
    store, channels = store_of_brains()
    with pytest.raises(UserError, match="found 99 devices, expected at most 7"):
        training.train_encoder(
            store,
            SETTINGS,
            Path("unused"),
            train=KEYS,
            held_out=(),
            seed=0,
            channels=channels,
            processes=Processes(0, 99),
        )


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_parts_divide_a_batch(size):
    processes = [Processes(rank, 3) for rank in range(3)]
    parts = [range(size)[each.part] for each in processes]
    assert sorted(item for part in parts for item in part) == [*range(size)]
    assert sum(each.share(size) for each in processes) == pytest.approx(1)
    assert [each.share(size) * size for each in processes] == pytest.approx([len(part) for part in parts])


def test_alone_changes_no_value():
    alone, values = Processes(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone.summand(values), values.mean())
    assert torch.equal(alone.mean(values), values.mean(dim=0))
    assert alone.total(values) is values
    assert alone.share(7) == 1.0
