import json

import pytest
import torch
from voxout.data_manifests.errors import UserError
from voxout.models.encoder.checkpoint import Checkpoint, Origin, TrainingRow, build_autoencoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.settings import ModelSettings

ORIGIN = Origin(("t1w", "flair"), (PatchShape("axial", 7), PatchShape("volume", 3)), 2.0, "mask", "subjects", 5)
ROW = TrainingRow(50, "guided", 0.1, None, 1.0, 1e-4, 0.2, 0.5, 1.0, 4.0, 1e-3)


def checkpoint(step=50, seed=0):
    settings = ModelSettings.model_validate({"encoder": {"latent_size": 6}, "detector": {"nu": 0.07}})
    torch.manual_seed(seed)
    model = build_autoencoder(settings, ORIGIN)
    model((torch.rand(9, 2, 7, 7), torch.rand(9, 2, 3, 3, 3)))  # updates the batch-norm statistics
    optimiser = {
        "encoder.branches.0.0.weight.exp_avg": torch.rand(3, 4),
        "encoder.branches.0.0.weight.step": torch.tensor(5.0),
    }
    return Checkpoint(model, optimiser, settings, ORIGIN, step, (ROW,))


def test_save_and_load_round_trip(tmp_path):
    saved = checkpoint()
    saved.save(tmp_path / "encoder")
    loaded = Checkpoint.load(tmp_path / "encoder")
    assert (loaded.origin, loaded.step, loaded.history) == (ORIGIN, 50, (ROW,))
    for section in ("encoder", "guidance", "training"):
        assert getattr(loaded.settings, section) == getattr(saved.settings, section)
    assert not loaded.autoencoder.training
    patches = torch.rand(4, 2, 7, 7), torch.rand(4, 2, 3, 3, 3)
    assert torch.equal(loaded.encoder(patches), saved.encoder.eval()(patches))
    assert loaded.optimiser.keys() == saved.optimiser.keys()
    assert all(torch.equal(loaded.optimiser[name], value) for name, value in saved.optimiser.items())


def test_settings_of_later_stages_are_not_stored(tmp_path):
    """A renamed setting of the ensemble must not invalidate a trained encoder."""
    checkpoint().save(tmp_path)
    path = tmp_path / "checkpoint.json"
    index = json.loads(path.read_text())
    assert set(index["settings"]) == {"encoder", "guidance", "training"}
    index["settings"]["ensemble"] = {"of_another_version": 3}
    path.write_text(json.dumps(index))
    assert Checkpoint.load(tmp_path).step == 50


def test_save_replaces_the_previous_checkpoint(tmp_path):
    checkpoint(50).save(tmp_path)
    checkpoint(100).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "step-000100.safetensors"]
    assert Checkpoint.load(tmp_path).step == 100


@pytest.mark.parametrize("killed_at", ["save", "json.dumps"])
def test_killed_while_saving_keeps_the_previous_checkpoint(tmp_path, monkeypatch, killed_at):
    older = checkpoint(50)
    older.save(tmp_path)

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"voxout.models.encoder.checkpoint.{killed_at}", kill)
        checkpoint(100, seed=1).save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded.step == 50
    assert torch.equal(loaded.encoder.branches[0][0].weight, older.encoder.branches[0][0].weight)


def test_no_pickle(tmp_path):
    checkpoint().save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_no_subject_keys_and_no_paths(tmp_path):
    checkpoint().save(tmp_path)
    text = (tmp_path / "checkpoint.json").read_text()
    assert "sub-" not in text
    assert str(tmp_path) not in text


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(UserError, match="found no trained encoder, expected checkpoint.json. Run the stage train"):
        Checkpoint.load(tmp_path)
    checkpoint().save(tmp_path)
    tensors = tmp_path / "step-000050.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="checkpoint is damaged .* delete the folder and train again"):
        Checkpoint.load(tmp_path)
    tensors.write_bytes(content)
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    index["settings"]["encoder"]["latent_size"] = 7
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="damaged"):
        Checkpoint.load(tmp_path)
