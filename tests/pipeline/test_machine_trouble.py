"""Full disks and invalid command-line values: one message, exit code 2."""

import errno
import os

import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.errors import MachineError, UserError
from voxout.pipeline.config.config import load_config
from voxout.pipeline.workflow.device import choose_device
from voxout.pipeline.workflow.engine import _guarded
from voxout.pipeline.workflow.folders import make_folder


class _Subject:
    key = "sub-01"


def _write_to_a_full_device(subject, out):
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def _find_no_scan(subject, out):
    raise OSError(errno.ENOENT, "No such file", "/data/scan.nii.gz")


def test_a_full_disk_is_not_blamed_on_the_scan(tmp_path):
    result, reason = _guarded(0o022, _write_to_a_full_device, _Subject(), OutputFolder(tmp_path))
    assert result is None and isinstance(reason, MachineError)
    assert "no space left" in str(reason) and "sub-01" not in str(reason)
    _, reason = _guarded(0o022, _find_no_scan, _Subject(), OutputFolder(tmp_path))
    assert isinstance(reason, str) and reason.startswith("sub-01")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("preprocessing.modalities=[t1w,flair", "not readable as YAML"),
        ("seed=" + "[" * 5000, "nested too deeply"),
        ("seed=[&a [1], *a]", "reference"),
        ("seed=\x00", "not readable as YAML"),
        ("seed=2001-99-99", "not readable as YAML"),
        ("seed=\udcff", "not readable as YAML"),
        (".".join("n" * 2000) + "=1", "too long"),
    ],
)
def test_a_setting_that_is_no_yaml_gives_one_message(override, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(overrides=[override])
    assert len(caught.value.problems) == 1 and len(str(caught.value)) < 700


def test_a_configuration_that_is_not_a_settings_file(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xe9")
    cases = ((tmp_path, "is not a file"), ("/dev/zero", "is not a file"), (tmp_path / "latin.yaml", "UTF-8"))
    for path, words in cases:
        with pytest.raises(UserError, match=words):
            load_config(type(tmp_path)(path))


@pytest.mark.parametrize("name", ["meta", "mkldnn", "fake", "nonsense", "cuda:99"])
def test_a_device_that_computes_nothing_is_refused(name):
    with pytest.raises(UserError, match="not usable here"):
        choose_device(name)


def test_a_working_device_is_accepted():
    assert choose_device("cpu") == "cpu"


def test_invalid_names_of_output_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~/results", "~nosuchuser/results", os.fsdecode(b"\xff\xfe"), "n" * 300):
        with pytest.raises(UserError):
            make_folder(type(tmp_path)(name))
    assert not list(tmp_path.iterdir())
