import pytest
import torch
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.run import RunOptions, run_pipeline
from voxout.pipeline.workflow.console import Console
from voxout.pipeline.workflow.device import choose_devices


def test_several_devices():
    assert choose_devices("cpu") == ("cpu",)
    assert choose_devices("cpu,cpu") == ("cpu", "cpu")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("cpu,cuda:0", "expected GPUs only"),
        ("auto,auto", "expected GPUs only"),
        ("cuda:0,", "expected GPUs only"),
        ("cuda:0,cuda:1,cuda:0", "found a GPU twice"),
        ("cuda,cuda:0", "found a GPU twice"),
    ],
)
def test_lists_that_cannot_be_used(names, found):
    with pytest.raises(UserError, match=f"^--device {names}: .*{found}"):
        choose_devices(names)


def test_more_processes_than_devices():
    """Also where CUDA_VISIBLE_DEVICES is empty, or torch has no CUDA."""
    count = torch.cuda.device_count()
    names = ",".join(f"cuda:{number}" for number in range(count + 2))
    with pytest.raises(UserError, match=rf"^--device cuda:{count}: not usable here .*\. Try cpu\.$"):
        choose_devices(names)


def test_a_command_started_by_torchrun_is_refused(tmp_path, monkeypatch):
    """Two commands would write to the same folder. MASTER_ADDR may be missing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^found WORLD_SIZE=2, .*--device cuda:0,cuda:1"):
        run_pipeline(RunOptions(Manifest(()), tmp_path / "out", ("train",)), Console)
    assert not (tmp_path / "out").exists()
