"""Training with the contrast term, on small simulated brains."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from voxout.data_manifests.errors import UserError
from voxout.models.edits.edited_controls import EditedControls
from voxout.models.edits.families import FAMILIES
from voxout.models.encoder import contrast_term, edited_patches, training
from voxout.models.encoder.checkpoint import Checkpoint
from voxout.models.encoder.contrast_loss import log_distance
from voxout.models.encoder.edited_patches import copies_to_draw, draw_edited_patches
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.encoder.training import train_encoder
from voxout.models.settings import ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(6.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)
CHANNELS = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0), "flair": (0.0, 1.0)}), ("extension",))
KEYS = tuple(f"sub-{number:02}" for number in range(26))
TRAIN, UNSEEN = KEYS[:16], KEYS[16:]
SHAPES = PatchShape("volume", 3), PatchShape("coronal", 5)


@pytest.fixture(scope="module")
def store():
    """The template and its negative, plus smooth noise for each subject."""
    random = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.normal(size=(len(KEYS), 2, *MASK.grid.size_vox)), [0, 0, 0.7, 0.7, 0.7])
    pair = np.stack([TEMPLATE.t1w.voxels, 0.8 - 0.7 * TEMPLATE.t1w.voxels])
    images = np.clip(pair + 0.04 * noise / noise.std(), 0, 1) * MASK.brain_mask
    volumes = [CHANNELS.with_derived(both.astype(np.float32), TEMPLATE.brain_mask) for both in images]
    inside = np.array(np.broadcast_to(MASK.brain_mask, (len(KEYS), *MASK.grid.size_vox)))
    return VolumeStore(None, KEYS, CHANNELS.names, MASK, np.stack(volumes).astype(np.float16), inside)


@pytest.fixture(scope="module", autouse=True)
def few_voxels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_VOXELS_PER_STEP", 6)
        patch.setattr(contrast_term, "_VOXELS_PER_STEP", 24)
        yield


def edited_controls(store, families=tuple(FAMILIES), seed=3, keys=TRAIN):
    return EditedControls(store, keys, CHANNELS, families, seed)


def settings_of(**change):
    sections = {
        "encoder": {"latent_size": 4, "patch_size_mm": 18, "channels": "modalities"},
        "guidance": {"weight": 0},
        "contrast": {"weight": 1.0, "copies": 1},
        "training": {"pretraining_steps": 10, "guided_steps": 12, "patches_per_step": 64, "checkpoint_every": 4},
    }
    for section, fields in change.items():
        sections[section] = sections.get(section, {}) | fields
    return ModelSettings.model_validate(sections)


def train(store, out, settings=None, **change):
    settings = settings or settings_of()
    arguments = {"train": TRAIN, "held_out": UNSEEN, "seed": 3, "channels": CHANNELS} | change
    return train_encoder(store.only(CHANNELS.chosen(settings.encoder.channels)), settings, out, **arguments)


def tensors(checkpoint):
    named = {f"model.{name}": value for name, value in checkpoint.autoencoder.state_dict().items()}
    return named | checkpoint.optimiser | {f"contrast.{name}": value for name, value in checkpoint.contrast.items()}


def assert_same(one, other):
    assert one.history == other.history
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


# -- edited patches ----------------------------------------------------------------------------------------------------
def drawn_patches(controls, pairs, jobs=1):
    steps = []
    edited = draw_edited_patches(controls, pairs, SHAPES, device="cpu", jobs=jobs, step=lambda: steps.append(1))
    assert len(steps) == len(pairs)
    return edited


def test_patches_are_those_of_the_edited_images(store):
    controls = edited_controls(store)
    edited = drawn_patches(controls, [(2, 5)])
    channels, drawn = controls.draw(controls.unedited(5), 2)
    numbers = drawn.numbers[tuple(edited.voxels.T)]
    assert (numbers > 0).all() and (edited.controls == 5).all()
    np.testing.assert_array_equal(edited.is_edited, [drawn.families[number - 1] != "sham" for number in numbers])
    assert np.bincount(numbers).max() <= 24
    cubes, squares = edited.patches
    assert cubes.shape[1:] == (4, 3, 3, 3) and squares.shape[1:] == (4, 5, 5) and cubes.dtype == torch.float16
    np.testing.assert_array_equal(cubes[:, :, 1, 1, 1], channels[:, *edited.voxels.T].T.astype(np.float16))
    np.testing.assert_array_equal(squares[:, :, 2, 2], cubes[:, :, 1, 1, 1])
    modalities = drawn_patches(edited_controls(store.only(CHANNELS.modalities)), [(2, 5)])
    assert torch.equal(modalities.patches[0], cubes[:, :2])


def test_patches_do_not_depend_on_the_number_of_threads(store):
    controls = edited_controls(store)
    one, other = (drawn_patches(controls, [(0, 0), (0, 1), (1, 0)], jobs) for jobs in (1, 3))
    assert all(torch.equal(*pair) for pair in zip(one.patches, other.patches, strict=True))
    np.testing.assert_array_equal(one.voxels, other.voxels)


def test_number_of_patches_is_limited(store, monkeypatch):
    controls = edited_controls(store)
    monkeypatch.setattr(edited_patches, "_MOST_PATCHES", 90)
    pairs = copies_to_draw(controls, 4, SHAPES)
    assert pairs == [(0, index) for index in range(11)]
    assert len(drawn_patches(controls, pairs[:5])) <= 90
    monkeypatch.setattr(edited_patches, "_MOST_NUMBERS", 4 * (27 + 25) * 32)
    assert len(copies_to_draw(controls, 4, SHAPES)) == 4


# -- training ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A complete run, with its progress calls."""
    folder, calls = tmp_path_factory.mktemp("trained"), []
    return train(store, folder, progress=lambda *done: calls.append(done)), folder, calls


def test_term_is_recorded_and_its_parameters_are_learnt(trained):
    checkpoint, folder, calls = trained
    assert [row.contrast is None for row in checkpoint.history] == [True, False]
    assert 0 < checkpoint.history[-1].contrast < 3
    assert checkpoint.contrast["slope"] != 3
    assert "contrast.slope.exp_avg" in checkpoint.optimiser
    assert calls == [(done, 38) for done in range(1, 39)], "22 steps and a copy of each of 16 controls"
    index = json.loads((folder / "checkpoint.json").read_text())
    assert index["settings"]["contrast"]["copies"] == 1
    assert index["history"][1]["contrast"] == checkpoint.history[-1].contrast


@pytest.mark.parametrize("killed_at", [6, 11, 20, 30, 37])
def test_resumed_run_gives_identical_results(store, trained, tmp_path, killed_at):
    """Killed in pre-training, while the edits are drawn, and in the guided steps."""

    class Killed(Exception):
        pass

    def kill(done, _total):
        if done == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(store, tmp_path, progress=kill)
    torch.manual_seed(99)
    assert_same(train(store, tmp_path), trained[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": 0}, "models.contrast.weight 1.0 instead of 0.0"),
        ({"copies": 2}, "models.contrast.copies 1 instead of 2"),
        ({"families": ("blur",)}, "models.contrast.families"),
    ],
)
def test_checkpoint_of_another_run(store, trained, change, named):
    with pytest.raises(UserError, match="found the encoder of another run") as error:
        train(store, trained[1], settings_of(contrast=change, training={"siamese_weight": 0}))
    assert named in str(error.value)


def test_without_the_term_its_settings_have_no_effect_on_the_files(store, tmp_path):
    """The files are those of a version without the term."""
    written = []
    for name, families in (("one", ("blur",)), ("other", ("noise", "warp"))):
        settings = settings_of(contrast={"weight": 0, "families": families}, training={"siamese_weight": 0.1})
        train(store, tmp_path / name, settings, channels=None)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    index = json.loads(written[0]["checkpoint.json"])
    assert set(index["settings"]) == {"encoder", "guidance", "training"}
    assert not any("contrast" in row for row in index["history"])
    assert Checkpoint.load(tmp_path / "one").settings.contrast.weight == 0


def test_too_few_controls(store, tmp_path):
    with pytest.raises(UserError, match=r"Contrast with edits: found 9 training controls, expected at least 10\. Add"):
        train(store, tmp_path, train=TRAIN[:9])
    assert not Checkpoint.exists(tmp_path)
    inside = store.inside.copy()
    inside[9:, : inside.shape[1] * 2 // 3] = False
    with pytest.raises(UserError, match=r"in the brain masks of at most 9 training controls, expected at least 10"):
        train(replace(store, inside=inside), tmp_path)
    with pytest.raises(ValueError, match="needs the channels"):
        train(store, tmp_path / "none", channels=None)


def test_all_channels_several_patch_shapes_and_guidance(store, tmp_path):
    encoder = {"channels": "all", "planes": ("axial", "volume"), "patch_size_mm": (18, 30)}
    settings = settings_of(
        encoder=encoder, guidance={"weight": 0.01, "nu": 0.3}, training={"pretraining_steps": 3, "guided_steps": 3}
    )
    checkpoint = train(store, tmp_path, settings)
    assert len(checkpoint.encoder.patch_shapes) == 4 and checkpoint.encoder.channels == 4
    assert np.isfinite(checkpoint.history[-1].contrast)


def auroc(encoder, store, families):
    """AUROC of edited against healthy patches of unseen subjects, by the distance to the training controls."""
    chosen = store.only(CHANNELS.modalities)
    controls = edited_controls(chosen, families, seed=8, keys=UNSEEN)
    shapes = encoder.patch_shapes
    pairs = [(0, index) for index in range(len(UNSEEN))]
    edited = draw_edited_patches(controls, pairs, shapes, device="cpu", jobs=1, step=lambda: None)
    edited = edited.only(edited.is_edited)
    volumes, n = torch.from_numpy(chosen.volumes), len(edited)

    def cut(rows):
        rows, centres = torch.from_numpy(rows.ravel()), np.repeat(edited.voxels, rows.size // n, axis=0)
        return tuple(shape.cut(volumes, rows, torch.from_numpy(centres)) for shape in shapes)

    train_rows = np.tile(store.index(TRAIN), (n, 1))
    with torch.no_grad():
        support = encoder(cut(train_rows)).unflatten(0, (n, len(TRAIN)))
        healthy = encoder(cut(store.index(UNSEEN)[edited.controls]))
        drawn = encoder(tuple(patch.float() for patch in edited.patches))
        distances = log_distance(support, torch.stack([healthy, drawn], dim=1)).numpy()
    return roc_auc_score(np.repeat([0, 1], n), distances.T.ravel())


def test_latents_learn_to_tell_edits(store, tmp_path):
    """On edits of unseen subjects, after training by the term alone."""
    families = ("noise",)
    short = {"pretraining_steps": 1, "guided_steps": 1}
    untrained = train(store, tmp_path / "untrained", settings_of(training=short))
    long = {"pretraining_steps": 1, "guided_steps": 150, "guided_learning_rate": 5e-3}
    settings = settings_of(training=long, contrast={"weight": 30.0, "copies": 4, "families": families})
    trained = train(store, tmp_path / "trained", settings)
    before, after = (auroc(each.encoder, store, families) for each in (untrained, trained))
    assert before < 0.8 and after > 0.88
