"""Safetensors files with invalid headers are refused before anything is mapped, read or allocated."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError
from voxout.models.anomaly.calibration import Calibration
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors
from voxout.models.tensor_file import opened_tensors, read_header, write_tensors

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4)}


def rewritten(path: Path, change, length: int | None = None) -> None:
    """Replace the header of a file."""
    content = path.read_bytes()
    old = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + old]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content[8 + old :])


def entry(name, **change):
    return lambda header: header | {name: header[name] | change}


INVALID = {
    "offsets outside the file": entry("a", data_offsets=[0, 10**12], shape=[10**12 // 4]),
    "negative offsets": entry("a", data_offsets=[-24, 0]),
    "offsets reversed": entry("a", data_offsets=[56, 32]),
    "overlapping": entry("a", data_offsets=[0, 24]),
    "a gap": lambda header: {name: header[name] for name in ("a",)},
    "huge shape": entry("a", shape=[2**40, 2**40]),
    "shape that overflows": entry("a", shape=[2**63, 2]),
    "negative shape": entry("a", shape=[-2, -3]),
    "shape of strings": entry("a", shape=["2", "3"]),
    "a fraction": entry("a", shape=[2.0, 3]),
    "unknown type": entry("a", dtype="F128"),
    "another type": entry("a", dtype="F64"),
    "a type that is not a string": entry("a", dtype=["F32"]),
    "three offsets": entry("a", data_offsets=[0, 4, 24]),
    "unknown field in an entry": entry("a", command="id"),
    "entry is a list": lambda header: header | {"a": []},
    "header is a list": lambda header: [header],
    "metadata that is not a string": lambda header: header | {"__metadata__": {"slope": 1}},
    "not JSON": lambda header: b"{" * 200,
    "deep": lambda header: b"[" * 100_000,
    "not text": lambda header: b"\xff" * 64,
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_header_is_refused_in_one_sentence(tmp_path, case):
    path = write_tensors(tmp_path / "file.safetensors", ARRAYS)
    rewritten(path, INVALID[case])
    with pytest.raises(ValueError):
        read_header(path)
    with pytest.raises(UserError) as caught, opened_tensors(path, "arrays") as file:
        file.array("a", "float32", 2)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path, length):
    path = write_tensors(tmp_path / "file.safetensors", ARRAYS)
    rewritten(path, lambda header: header, length)
    with pytest.raises(ValueError, match="its header claims"):
        read_header(path)


def test_a_valid_header_is_read(tmp_path):
    path = write_tensors(tmp_path / "file.safetensors", ARRAYS, about="numbers")
    header, metadata = read_header(path)
    assert metadata == {"about": "numbers"}
    for name, tensor in header.items():
        mapped = np.memmap(path, tensor.dtype, "r", tensor.offset, tensor.shape)
        np.testing.assert_array_equal(mapped, ARRAYS[name])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_refused_or_give_arrays_no_larger_than_the_file(tmp_path, data):
    path = write_tensors(tmp_path / "file.safetensors", ARRAYS, about="numbers")
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with opened_tensors(path, "arrays") as file:
            assert sum(file.array(name, "float32", 2, finite=False).nbytes for name in ("a",)) <= len(content)
    except UserError as error:
        assert str(error).count("\n") == 0


def test_detectors_with_an_invalid_header_are_not_mapped(tmp_path):
    latents = np.random.default_rng(0).normal(size=(12, 5, 3)).astype(np.float32)
    path = fit_detectors(latents, nu=0.3, gamma=0.1).save(tmp_path)
    file = path / "detectors.safetensors"
    content = file.read_bytes()
    for change in (
        entry("support_vectors", data_offsets=[10**9, 2 * 10**9]),
        entry("n_support", dtype="F64"),
        entry("dual_coef", shape=[1]),
        entry("gamma", data_offsets=[0, 8]),
        lambda header: {name: value for name, value in header.items() if name != "gamma"},
    ):
        rewritten(file, change)
        with pytest.raises(UserError, match="not readable as detectors"):
            DetectorField.load(path)
        file.write_bytes(content)
    assert len(DetectorField.load(path)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"nu": 0},
        {"nu": float("nan")},
        {"gamma": -1.0},
        {"gamma": "wide"},
        {"locations": 6},
        {"locations": 10**15},
        {"dimension": 2},
        {"support_vectors": "8"},
        {"precision": "float64"},
        {"more": 1},
    ],
    ids=str,
)
def test_detectors_must_match_their_description(tmp_path, change):
    latents = np.random.default_rng(0).normal(size=(12, 5, 3)).astype(np.float32)
    path = fit_detectors(latents, nu=0.3, gamma="scale").save(tmp_path)
    notes = json.loads((path / "detectors.json").read_text())
    (path / "detectors.json").write_text(json.dumps(notes | change))
    with pytest.raises(UserError, match="Copy or fit the detectors again"):
        DetectorField.load(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"knots": np.array([2.0, 1.0, 0.0])}, "does not rise"),
        ({"knots": np.array([0.0, 1.0, np.nan])}, "knots is not finite"),
        ({"knots": np.array([0.0, 1.0])}, "its table of -log10 p is invalid"),
        ({"neg_log10_p_at": np.array([0.3, 0.2, 0.1])}, "does not rise"),
        ({"spread": np.array([1, -1], np.float32)}, "spread is -1"),
        ({"spread": np.array([1, 0], np.float32)}, "spread is 0"),
        ({"spread": np.array([1, np.nan], np.float32)}, "spread is not finite"),
        ({"spread": np.ones(2)}, "spread is float64"),
        ({"slope": "nan"}, "slope is nan"),
        ({"slope": "-1"}, "slope is -1"),
        ({"slope": "steep"}, "steep"),
    ],
)
def test_an_invalid_calibration_is_refused(tmp_path, change, found):
    content = {
        "spread": np.ones(2, np.float32),
        "knots": np.array([0.0, 1.0, 2.0]),
        "neg_log10_p_at": np.array([0.0, 0.1, 0.2]),
    }
    metadata = {"slope": "1.0", "mask_hash": "mask"}
    path = write_tensors(tmp_path / "calibration.safetensors", content, **metadata)
    assert Calibration.load(path).slope == 1
    strings = {name: value for name, value in change.items() if isinstance(value, str)}
    arrays = {name: value for name, value in change.items() if name not in strings}
    write_tensors(path, content | arrays, **metadata | strings)
    with pytest.raises(UserError, match=f"holds no complete calibration .*{found}"):
        Calibration.load(path)
