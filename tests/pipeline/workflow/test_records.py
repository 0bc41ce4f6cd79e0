import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.errors import Failure
from voxout.pipeline.config.diff import changes, flat_settings
from voxout.pipeline.workflow import records
from voxout.pipeline.workflow.records import Meter, StageRecord, file_fingerprint, fingerprint, sizes


def _record(**changed):
    values = {"stage": "fit", "inputs": {"settings.models.detector.nu": 0.1, "the encoder": "a1"}, "outputs": {}}
    return StageRecord(**(values | changed))


def test_a_record_is_read_as_written(tmp_path):
    record = _record(outputs={"a/b": 3}, failed=(Failure("sub-1", "fit", "why"),), warnings=("w",), done=("sub-2",))
    record.write(tmp_path / "fit.json")
    assert StageRecord.read(tmp_path / "fit.json") == record
    assert [file.name for file in tmp_path.iterdir()] == ["fit.json"], "no temporary file is left"


def test_a_truncated_record_is_not_read(tmp_path):
    _record().write(tmp_path / "fit.json")
    text = (tmp_path / "fit.json").read_text()
    for length in range(0, len(text) - 1, 7):
        (tmp_path / "fit.json").write_text(text[:length])
        assert StageRecord.read(tmp_path / "fit.json") is None


def test_a_record_is_read_once_until_it_is_replaced(tmp_path):
    path = tmp_path / "fit.json"
    _record(started="1").write(path)
    first = StageRecord.read(path)
    assert StageRecord.read(path) is first
    _record(started="2").write(path)
    assert StageRecord.read(path) == _record(started="2")
    path.unlink()
    assert StageRecord.read(path) is None


def test_complete_means_all_files_with_their_sizes(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.bin").write_bytes(b"123")
    (tmp_path / "b.bin").write_bytes(b"12345")
    record = _record(outputs=sizes(tmp_path, [tmp_path / "maps", tmp_path / "b.bin"]))
    assert dict(record.outputs) == {"maps/a.bin": 3, "b.bin": 5}
    assert record.is_complete(tmp_path)
    (tmp_path / "b.bin").write_bytes(b"1234")
    assert not record.is_complete(tmp_path)
    (tmp_path / "b.bin").unlink()
    assert not record.is_complete(tmp_path)


def test_running_a_stage_again_changes_its_identity():
    assert _record(started="1").identity == _record(started="1").identity
    assert _record(started="1").identity != _record(started="2").identity


def test_changes_are_described():
    before = {"settings.models.detector.nu": 0.1, "the encoder": "a1", "prepared sub-1": "x"}
    now = {"settings.models.detector.nu": 0.2, "the encoder": "a2", "prepared sub-2": "y"}
    assert changes(before, now) == [
        "prepared sub-1 is not among the inputs any more",
        "prepared sub-2 is new",
        "models.detector.nu was 0.1, is now 0.2",
        "the encoder was recomputed or changed",
    ]
    assert changes(before, before) == []


def test_settings_are_flattened():
    nested = {"models": {"detector": {"nu": 0.1}, "x": [1]}}
    assert flat_settings(nested) == {"settings.models.detector.nu": 0.1, "settings.models.x": [1]}


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6))
def test_a_fingerprint_ignores_order(values):
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))


def test_a_files_fingerprint_follows_its_content(tmp_path):
    path = tmp_path / "a"
    assert file_fingerprint(path) == "missing"
    path.write_bytes(b"one")
    first = file_fingerprint(path)
    path.write_bytes(b"two!")
    second = file_fingerprint(path)
    copy = tmp_path / "copy"
    copy.write_bytes(b"one")
    assert first != second
    assert file_fingerprint(copy) == first


def test_the_meter_measures_time_and_memory(monkeypatch):
    monkeypatch.setattr(records, "_SAMPLED_EVERY_S", 0.02)
    with Meter() as before:
        time.sleep(0.1)
    with Meter() as meter:
        block = np.ones(30_000_000)
        time.sleep(0.15)
    assert meter.wall_s >= 0.15
    assert block.nbytes / 2**20 * 0.8 < meter.peak_memory_mb - before.peak_memory_mb
