import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from voxout.data_manifests.errors import UserError
from voxout.models.quantised import quantise, read_quantised, read_units, units_of, write_quantised, write_units
from voxout.models.tensor_file import write_tensors

VOXELS, FEATURES = 2000, 3


def random_arrays(seed=0):
    """Arrays of a whitening and a regression, whose features have very different scales at each voxel."""
    random = np.random.default_rng(seed)
    sd = np.exp(random.normal(size=(VOXELS, FEATURES)) * 3)
    _, columns = np.tril_indices(FEATURES)
    factor = random.normal(size=(VOXELS, FEATURES * (FEATURES + 1) // 2))
    return sd, {
        "mean": (5 * random.normal(size=sd.shape) * sd).astype("f4"),
        "packed": (0.25 * factor / sd[:, columns]).astype("f4"),
        "slopes": (0.1 * random.normal(size=(4, *sd.shape)) * sd).astype("f2"),
        "spread": np.exp(random.normal(size=5000)).astype("f4"),
        "knots": np.arange(5000.0),
    }


def test_errors_are_at_most_half_a_step_in_the_units_of_each_feature(tmp_path):
    sd, arrays = random_arrays()
    source = write_tensors(tmp_path / "a.safetensors", arrays, unit="0.25", mask_hash="abc")
    units = write_units(tmp_path / "units.safetensors", sd)
    np.testing.assert_array_equal(read_units(tmp_path / "units.safetensors"), units)
    steps = {"mean": 0.1, "packed": 0.05, "slopes": 0.02, "spread": 0.01}
    small = write_quantised(source, tmp_path / "b.safetensors", steps=steps, units=units)
    restored = load_file(read_quantised(small, tmp_path / "c.safetensors", units=units))
    assert {name: (a.shape, a.dtype) for name, a in restored.items()} == {
        name: (a.shape, a.dtype) for name, a in arrays.items()
    }
    np.testing.assert_array_equal(restored["knots"], arrays["knots"])
    _, columns = np.tril_indices(FEATURES)
    rounded = 2.0 ** (units / 2.0)
    assert (np.abs(np.log2(rounded / sd)) <= 0.2501).all()
    in_units = {
        "mean": np.abs(restored["mean"] - arrays["mean"]) / rounded,
        "packed": np.abs(restored["packed"] - arrays["packed"]) * rounded[:, columns] / 0.25,
        "slopes": np.abs(restored["slopes"].astype(float) - arrays["slopes"]) / rounded,
        "spread": np.abs(restored["spread"] - arrays["spread"]) / arrays["spread"] / 1.2,
    }
    for name, errors in in_units.items():
        assert steps[name] / 4 < errors.max() < 0.52 * steps[name] + 1e-3, name
    assert small.stat().st_size < 0.8 * source.stat().st_size


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(7,), (7, 2), (2, 9), (2, 9, 3), (1, 1)]), st.sampled_from("fFd"))
def test_whole_numbers_of_one_or_two_bytes(seed, shape, order):
    random = np.random.default_rng(seed)
    array = random.normal(size=shape).astype("f4") * 10.0 ** random.integers(-6, 6)
    array = np.asfortranarray(array) if order == "F" else array
    parts = quantise(array, 2.0**-9)
    axis = int(np.argmax(shape))
    columns = np.moveaxis(array, axis, -1).reshape(-1, shape[axis])
    differences = parts["low"].astype(int) + 256 * parts.get("high", np.zeros_like(parts["low"])).astype(int)
    codes = np.cumsum(differences, axis=1).astype(np.int16).astype(int)
    scale = 2.0 ** (parts["units"] / 2.0)
    assert parts["low"].flags.c_contiguous and np.abs(codes * scale * 2.0**-9 - columns).max() <= (scale / 1000).max()


def test_the_largest_whole_numbers_with_alternating_signs(tmp_path):
    """Their differences do not fit into two bytes, but their remainders do."""
    array = np.tile(np.float32([31_000, -31_000, 5]), (4, 2000)).T.copy()
    source = write_tensors(tmp_path / "a.safetensors", {"mean": array})
    units = np.zeros(array.shape, np.int8)
    small = write_quantised(source, tmp_path / "b.safetensors", steps={"mean": 1.0}, units=units)
    restored = load_file(read_quantised(small, tmp_path / "c.safetensors", units=units))
    assert "mean.high" in load_file(small)
    np.testing.assert_array_equal(restored["mean"], array)


def test_values_that_do_not_fit_small_arrays_and_nan_are_stored_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    wild = random.normal(size=(VOXELS, FEATURES)).astype("f4")
    arrays = {"mean": wild, "scale": np.full(5000, np.nan, "f4"), "maps": random.normal(size=(3, 100)).astype("f4")}
    source = write_tensors(tmp_path / "a.safetensors", arrays)
    units = units_of(np.full(wild.shape, 1e-6))
    assert quantise(wild, 0.1, np.full(wild.shape, 1e-6)) is None
    small = write_quantised(source, tmp_path / "b.safetensors", units=units)
    restored = load_file(read_quantised(small, tmp_path / "c.safetensors", units=units))
    for name, array in arrays.items():
        np.testing.assert_array_equal(restored[name], array)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda arrays, _: arrays.pop("mean.low"), "no 'mean.low'"),
        (lambda arrays, _: arrays.update({"mean.low": arrays["mean.low"][:, :-1].copy()}), "found"),
        (lambda arrays, _: arrays.update({"mean.low": arrays["mean.low"].astype("u1")}), "uint8"),
        (lambda _, notes: notes.update(quantised="{"), "description of its whole numbers"),
        (
            lambda _, notes: notes.update(quantised=notes["quantised"].replace("float32", "object")),
            "description of its whole numbers",
        ),
        (lambda _, notes: notes.pop("quantised"), "no 'quantised'"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, found):
    sd, arrays = random_arrays()
    source = write_tensors(tmp_path / "a.safetensors", {"mean": arrays["mean"]})
    units = units_of(sd)
    small = write_quantised(source, tmp_path / "b.safetensors", units=units)
    from safetensors import safe_open

    with safe_open(small, framework="numpy") as file:
        notes = file.metadata()
    values = load_file(small)
    change(values, notes)
    write_tensors(small, values, **notes)
    with pytest.raises(UserError, match="holds no packed part of a model") as caught:
        read_quantised(small, tmp_path / "c.safetensors", units=units)
    assert found in str(caught.value)
    assert not (tmp_path / "c.safetensors").exists()


def test_units_that_are_missing_are_noticed(tmp_path):
    sd, arrays = random_arrays()
    source = write_tensors(tmp_path / "a.safetensors", {"mean": arrays["mean"]})
    small = write_quantised(source, tmp_path / "b.safetensors", units=units_of(sd))
    with pytest.raises(UserError, match="the units of mean are missing"):
        read_quantised(small, tmp_path / "c.safetensors")
