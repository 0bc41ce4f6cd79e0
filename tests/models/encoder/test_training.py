import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.encoder import network, training
from voxout.models.encoder.checkpoint import Checkpoint
from voxout.models.encoder.dense_inference import encode_densely
from voxout.models.encoder.training import train_encoder
from voxout.models.settings import ModelSettings
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

KEYS = tuple(f"sub-{number:02}" for number in range(9))
TRAIN, HELD_OUT = KEYS[:7], KEYS[7:]


@pytest.fixture(scope="module", autouse=True)
def few_voxels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_VOXELS_PER_STEP", 6)
        yield


@pytest.fixture(scope="module")
def store():
    """Smooth blobs common to all subjects, plus finer ones that differ between subjects."""
    shape, random = (22, 20, 8), np.random.default_rng(0)

    def smooth(size, width):
        return ndimage.gaussian_filter(random.normal(size=size), [0] * (len(size) - 3) + [width] * 3)

    common, own = smooth(shape, 1.5), smooth((len(KEYS), 1, *shape), 0.6)
    volumes = 1 / (1 + np.exp(-(20 * common + 2 * own)))
    mask = np.zeros(shape, bool)
    mask[4:-4, 4:-4, 1:-1] = True
    grid = VoxelMask(Grid(shape, np.diag([2.0, 2, 2, 1])), mask)
    inside = np.broadcast_to(mask, (len(KEYS), *shape))
    return VolumeStore(None, KEYS, ("t1w",), grid, volumes.astype(np.float16), inside)


def settings_of(**change):
    sections = {
        "encoder": {"latent_size": 4, "planes": ("axial",), "patch_size_mm": 10},
        "guidance": {"nu": 0.5},
        "training": {
            "pretraining_steps": 30,
            "guided_steps": 20,
            "patches_per_step": 64,
            "checkpoint_every": 8,
            "learning_rate": 1e-2,
        },
    }
    for section, fields in change.items():
        sections[section] = sections.get(section, {}) | fields
    return ModelSettings.model_validate(sections)


def train(store, out, settings=None, **change):
    arguments = {"train": TRAIN, "held_out": HELD_OUT, "seed": 3} | change
    return train_encoder(store, settings or settings_of(), out, **arguments)


def state(checkpoint):
    named = {f"model.{name}": value for name, value in checkpoint.autoencoder.state_dict().items()}
    return named | {f"optimiser.{name}": value for name, value in checkpoint.optimiser.items()}


def assert_same(one, other):
    assert one.history == other.history
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A complete run, with its curves and progress calls."""
    folder, calls = tmp_path_factory.mktemp("trained"), []
    checkpoint = train(
        store, folder / "encoder", tensorboard=folder / "curves", progress=lambda *done: calls.append(done)
    )
    return checkpoint, folder, calls


def test_both_phases_are_trained_and_recorded(store, trained):
    checkpoint, folder, calls = trained
    assert checkpoint.step == 50
    assert [(row.step, row.phase) for row in checkpoint.history] == [(30, "pretraining"), (50, "guided")]
    variance = store.volumes.astype(float).var()
    assert all(row.mse_train < 0.7 * variance and row.mse_held_out < 0.7 * variance for row in checkpoint.history)
    assert calls[0] == (1, 50)
    assert calls[-1] == (50, 50)
    assert json.loads((folder / "encoder" / "checkpoint.json").read_text())["history"][1]["step"] == 50
    curves = EventAccumulator(str(folder / "curves")).Reload()
    points = curves.Scalars("training/mse_held_out")
    assert [point.step for point in points] == [30, 50]
    assert points[-1].value == pytest.approx(checkpoint.history[-1].mse_held_out)


def test_encoder_depends_on_the_seed_only(store, trained, tmp_path):
    assert_same(train(store, tmp_path / "again"), trained[0])
    other = train(store, tmp_path / "other", seed=4)
    assert not torch.equal(other.encoder.branches[0][0].weight, trained[0].encoder.branches[0][0].weight)


@pytest.mark.parametrize("killed_at", [5, 20, 30, 37, 50])
def test_resumed_run_gives_identical_results(store, trained, tmp_path, killed_at):
    """Killed before the first checkpoint, between two, between the phases, and before the last."""

    class Killed(Exception):
        pass

    def kill(done, _total):
        if done == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(store, tmp_path, progress=kill)
    torch.manual_seed(99)  # another state of the generator
    assert_same(train(store, tmp_path), trained[0])


def test_finished_run_is_not_repeated(store, trained):
    _, folder, _ = trained
    index = folder / "encoder" / "checkpoint.json"
    before = index.stat().st_mtime_ns
    calls = []
    assert_same(train(store, folder / "encoder", progress=lambda *done: calls.append(done)), trained[0])
    assert calls == []
    assert index.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed 3 instead of 4"),
        ({"train": KEYS[:6]}, "(of other controls)"),
        ({"settings": settings_of(guidance={"weight": 0.5})}, "models.guidance.weight 0.0001 instead of 0.5"),
        ({"settings": settings_of(encoder={"patch_size_mm": 14})}, "patch_shapes (axial 5,) instead of (axial 7,)"),
    ],
)
def test_checkpoint_of_another_run(store, trained, change, named):
    with pytest.raises(
        UserError, match="found the encoder of another run .*, expected one of this run. Delete the folder"
    ) as error:
        train(store, trained[1] / "encoder", **change)
    assert named in str(error.value)


def test_settings_unrelated_to_training_may_change(store, trained):
    settings = settings_of(detector={"nu": 0.9}, ensemble={"p_norm": 3}, training={"checkpoint_every": 9})
    assert_same(train(store, trained[1] / "encoder", settings), trained[0])


def test_other_channels(store, trained):
    with pytest.raises(UserError, match="channels"):
        train(replace(store, channels=("flair",)), trained[1] / "encoder")


def test_guided_steps_freeze_the_inner_norms_and_keep_the_latent_scale(store, tmp_path):
    """With a large weight, the scale of the latents is still that of the affine part of the latent norm."""
    before = train(store, tmp_path / "before", settings_of(guidance={"weight": 0}))
    settings = settings_of(guidance={"weight": 10.0}, training={"guided_learning_rate": 1e-2})
    after = train(store, tmp_path / "after", settings)
    for old, new in zip(before.autoencoder.inner_norms(), after.autoencoder.inner_norms(), strict=True):
        assert torch.equal(old.running_mean, new.running_mean)
        assert torch.equal(old.running_var, new.running_var)
    assert torch.equal(before.encoder.latent_norm.weight, after.encoder.latent_norm.weight)
    assert torch.equal(before.encoder.latent_norm.bias, after.encoder.latent_norm.bias)
    assert not torch.equal(before.encoder.branches[0][0].weight, after.encoder.branches[0][0].weight)
    fixed = before.encoder.latent_norm.weight.square().mean().sqrt().item()
    assert after.history[-1].latent_scale == pytest.approx(fixed, rel=0.15)


@pytest.mark.slow
def test_lambda_is_halved_while_the_reconstruction_error_is_too_high(store, tmp_path, monkeypatch):
    """Also after resuming: lambda depends on the stored history."""
    monkeypatch.setattr(training, "MONITOR_EVERY", 2)
    heavy = {
        "guidance": {"weight": 30.0, "gamma": 0.5, "nu": 0.5},
        "training": {"guided_learning_rate": 3e-3, "pretraining_steps": 300},
    }
    bound = train(store, tmp_path / "bound", settings_of(**heavy))
    unbound = heavy | {"guidance": heavy["guidance"] | {"largest_mse_ratio": 1e6}}
    free = train(store, tmp_path / "free", settings_of(**unbound))
    assert free.history[-1].mse > 1.1 * bound.history[-1].mse, "this guidance is too strong without the limit"
    limit = 2.0 * [row.mse for row in bound.history if row.phase == "pretraining"][-1]
    guided = [row for row in bound.history if row.phase == "guided"]
    expected = 30.0
    for row in guided:
        assert row.guidance_weight == expected
        expected *= 0.5 if row.mse > limit else 1
    assert guided[-1].guidance_weight < 1.0

    class Killed(Exception):
        pass

    def kill(done, _total):
        if done == 311:
            raise Killed

    with pytest.raises(Killed):
        train(store, tmp_path / "killed", settings_of(**heavy), progress=kill)
    assert_same(train(store, tmp_path / "killed", settings_of(**heavy)), bound)


def test_reestimated_norms_describe_the_whole_brain(store, trained):
    """In eval mode, latents of all training subjects and voxels have the mean and scale of the latent norm."""
    encoder = trained[0].encoder
    rows = store.index(TRAIN)
    latents = torch.cat([encode_densely(encoder, torch.from_numpy(store.volumes[row]), store.grid) for row in rows])
    norm = encoder.latent_norm
    np.testing.assert_allclose(latents.mean(dim=0), norm.bias.detach(), atol=0.1)
    np.testing.assert_allclose(latents.std(dim=0), norm.weight.detach().abs(), rtol=0.1, atol=0.01)


def test_several_channels_and_no_held_out_controls(store, tmp_path):
    two = replace(store, channels=("t1w", "flair"), volumes=np.concatenate([store.volumes, 1 - store.volumes], axis=1))
    checkpoint = train(two, tmp_path, held_out=())
    assert checkpoint.encoder.channels == 2
    assert checkpoint.history[-1].mse_held_out is None


def test_siamese_term_makes_controls_more_similar(store, tmp_path):
    """1 - cos between co-located latents is lower than after the same steps with almost no weight."""

    def dissimilarity(weight):
        settings = settings_of(
            guidance={"weight": 0},
            training={"siamese_weight": weight, "guided_learning_rate": 1e-2, "guided_steps": 100},
        )
        checkpoint = train(store, tmp_path / f"{weight}", settings)
        volumes = torch.from_numpy(store.volumes[store.index(TRAIN[:2])])
        one, other = (encode_densely(checkpoint.encoder, volume, store.grid) for volume in volumes)
        return (1 - torch.nn.functional.cosine_similarity(one, other, dim=1)).mean().item()

    assert dissimilarity(0.3) < 0.9 * dissimilarity(1e-9)


def test_too_few_controls(store, tmp_path):
    with pytest.raises(UserError, match="found 2 training controls, expected at least 3"):
        train(store, tmp_path, train=store.keys[:2])
    with pytest.raises(UserError, match="found no training controls"):
        train(store, tmp_path, train=())
    assert not Checkpoint.exists(tmp_path)


def test_patch_size_without_a_network(store, tmp_path):
    with pytest.raises(UserError, match="expected one of 6, 10, 14, 18"):
        train(store, tmp_path, settings_of(encoder={"patch_size_mm": 80}))


def test_non_finite_loss_stops_training_without_saving(store, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "mse_loss", lambda a, b: (a - b).sum() * torch.nan)
    with pytest.raises(UserError, match="Training: the loss is nan at step 0, expected a finite number. Lower"):
        train(store, tmp_path)
    assert not Checkpoint.exists(tmp_path)


def test_handlers_of_ignite_and_monai_are_attached(store, tmp_path):
    from ignite.engine import Events

    class Losses(list):
        def attach(self, engine):
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda engine: self.append((engine.state.batch, engine.state.output["loss"])),
            )

    losses = Losses()
    settings = settings_of(training={"pretraining_steps": 3, "guided_steps": 2})
    train(store, tmp_path, settings, handlers=[losses])
    assert [step for step, _ in losses] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(loss) for _, loss in losses)


def test_global_torch_settings_are_restored(store, tmp_path):
    random, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train(store, tmp_path, settings_of(training={"pretraining_steps": 2, "guided_steps": 2}))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.are_deterministic_algorithms_enabled() == deterministic
