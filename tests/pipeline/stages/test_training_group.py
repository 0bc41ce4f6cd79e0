"""Training of one encoder by two processes of a command."""

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import psutil
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.errors import MachineError, UserError
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.models.encoder.checkpoint import Checkpoint
from voxout.models.settings import ModelSettings
from voxout.pipeline.config.config import Config
from voxout.pipeline.stages.encoder_task import EncoderTask
from voxout.pipeline.stages.train import STAGE
from voxout.pipeline.stages.training_group import train_together
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.engine import Engine
from voxout.pipeline.workflow.records import StageRecord
from voxout.pipeline.workflow.runner import Run
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.prepared_images import PreparedImages

from ..model.small_model import GRID, MASK, brains

KEYS = tuple(f"sub-{number:02}" for number in range(8))
SETTINGS = ModelSettings.model_validate(
    {
        "encoder": {"latent_size": 4, "patch_size_mm": 12},
        "guidance": {"nu": 0.5},
        "training": {"pretraining_steps": 8, "guided_steps": 8, "patches_per_step": 32, "checkpoint_every": 2},
    }
)
TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    mask = write_volume(folder / "mask.nii.gz", Volume(MASK, GRID.grid))
    images = [
        PreparedImages(key, {"t1w": write_volume(folder / f"{key}.nii.gz", Volume(image, GRID.grid))}, mask)
        for key, image in zip(KEYS, brains(len(KEYS))[:, 0].astype(np.float32), strict=True)
    ]
    channels = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}))
    out = tmp_path_factory.mktemp("patches")
    VolumeStore.create(out, images, GRID.grid, MASK, channels)
    return out


@pytest.fixture
def task(patches, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return EncoderTask(patches, SETTINGS, tmp_path / "encoder", KEYS[:6], KEYS[6:], 3, tmp_path / "curves")


def test_a_task_can_be_written(task):
    assert EncoderTask.from_json(task.to_json()) == task


def test_two_processes_give_the_encoder_of_one(task, tmp_path):
    calls, warned = [], []
    train_together(task, TWO, lambda *done: calls.append(done), warned.append)
    assert calls == [(step, 16) for step in range(1, 17)]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list((tmp_path / "curves").iterdir()) != []
    alone = replace(task, out=tmp_path / "alone", tensorboard=tmp_path / "other").run("cpu", lambda *_: None)
    together = Checkpoint.load(task.out)
    assert together.step == alone.step == 16
    for row, same in zip(together.history, alone.history, strict=True):
        assert (row.mse_train, row.guidance) == pytest.approx((same.mse_train, same.guidance), rel=1e-2)


def test_the_stage_uses_all_devices(patches, tmp_path):
    (out := OutputFolder(tmp_path / "out")).root.mkdir()
    shutil.copytree(patches, out.patches)
    splits = ["train"] * 6 + ["held_out"] * 2
    records = [SubjectRecord(f"{n:02}", "control", {}, split=split) for n, split in enumerate(splits)]
    config = Config.model_validate({"models": {**SETTINGS.model_dump(), "ensemble": {"scorers": ["ocsvm"]}}})
    run = Run(Manifest(tuple(records)), config, out, out, None, Engine(1), "cpu", Console(), training_devices=TWO)
    StageRecord("prepare", {}, {}, done=KEYS).write(out.record("prepare"))
    for record in records:
        StageRecord("prepare", {}, {}).write(out.subject_record(record))
    assert STAGE.work(run).summary == "16 steps"
    assert Checkpoint.load(out.member(0)).step == 16


def test_a_killed_process_ends_all_with_one_sentence_and_training_resumes(task):
    """The second process is killed; the first one would wait for it."""

    def kill(done, _total):
        if done == 5:
            _processes()[1].send_signal(signal.SIGKILL)

    with pytest.raises(
        MachineError,
        match=r"^Training: process 2 of 2 was killed \(SIGKILL, probably out of memory\)\. .*continue.*checkpoint",
    ):
        train_together(task, TWO, kill, print)
    assert _processes() == {}
    reached = Checkpoint.load(task.out).step
    assert 4 <= reached < 16
    calls = []
    train_together(task, TWO, lambda *done: calls.append(done), print)
    assert calls[0] == (reached + 1, 16)


def test_what_the_user_can_correct_is_told_once(task):
    train_together(replace(task, settings=_steps(2)), TWO, lambda *_: None, print)
    with pytest.raises(UserError, match="^.*found the encoder of another run") as raised:
        train_together(task, TWO, lambda *_: None, print)
    assert len(raised.value.problems) == 1


def test_a_bug_is_shown(task):
    with pytest.raises(RuntimeError, match="(?s)Traceback.*nosuchdevice"):
        train_together(task, ("nosuchdevice", "cpu"), lambda *_: None, print)


def _steps(number):
    return SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"pretraining_steps": number, "guided_steps": 0})}
    )


def _processes() -> dict[int, psutil.Process]:
    """Return the processes of a training, by rank."""
    lines = {process: process.cmdline() for process in psutil.Process(os.getpid()).children(recursive=True)}
    own = {process: line for process, line in lines.items() if any("training_process" in word for word in line)}
    return {int(line[-4]): process for process, line in own.items()}
