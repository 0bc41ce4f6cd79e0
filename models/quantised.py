"""Arrays of a model as small whole numbers, for a file to send: a third of the size, and scores that hardly move.

Values are rounded to multiples of a step, in units that fit them: of a whitening and of the regression before it, the
standard deviation of each feature at each voxel; of other arrays, the root mean square at each voxel. Units are half
powers of two. Stored are the differences of the whole numbers from voxel to voxel, column by column, as one or two
bytes in separate arrays, which compress well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ..data_manifests.typed_json import Content
from .tensor_file import TensorFile, opened_tensors, write_tensors

STEPS = {
    "spread": 2.0**-11,
    "expected": 2.0**-11,
    "mean": 2.0**-8.5,
    "packed": 2.0**-7.5,
    "slopes": 2.0**-8.5,
    "scale": 2.0**-8,
    "maps": 2.0**-5,
    "support_vectors": 2.0**-5,
    "centred_offset": 2.0**-12,
    "prototypes": 2.0**-12,
    "factors": 2.0**-12,
}
"""Steps of the arrays by name, in their units. Arrays of other names are stored as they are.

Chosen by the change of the z-scores of real heads: an array has a finer step if its size grows little by it, so that no
array accounts for most of the change.
"""
STEPS_OF_LEARNED = STEPS | {"mean": 2.0**-9, "packed": 2.0**-10}
"""Of the scorer `learned`, whose network sees the standard deviations that its whitening gives."""
_UNITS = "units"
_FEWEST = 4096
"""Values; smaller arrays are stored as they are."""
_PLANE = 256
_LARGEST_CODE = 32_000
_NOTES = "quantised"


class _Note(Content):
    dtype: Literal["float16", "float32", "float64"]
    shape: list[Annotated[int, Field(ge=1, lt=2**40)]] = Field(min_length=1, max_length=4)
    step: Annotated[float, Field(gt=0)]
    wide: bool
    by_feature: bool


_NOTES_BY_NAME = TypeAdapter(dict[str, _Note])


def write_quantised(
    source: Path, path: Path, *, steps: Mapping[str, float] = STEPS, units: np.ndarray | None = None
) -> Path:
    """Write a safetensors file of a model with arrays as whole numbers; `read_quantised` restores it.

    Parameters
    ----------
    source, path : Path
    steps : mapping from name of the array to step
    units : ndarray of int8, (P, d), optional
        Unit of each feature at each voxel, see `units_of`. Used for arrays whose last axis but one has P and whose last
        has d (or, packed, d(d+1)/2) elements.
    """
    tensors, notes = {}, {}
    with opened_tensors(source, "part of a model") as file:
        metadata = dict(file.metadata)
        for name, stored in file.header.items():
            array = file.array(name, stored.dtype.name, len(stored.shape), finite=False)
            step = steps.get(name)
            if step is not None and name == "packed":
                step *= float(metadata["unit"])  # of the stored matrix
            by_feature = units is not None and _has_features(name, array.shape, units)
            parts = None
            if step is not None and array.dtype.kind == "f" and array.size >= _FEWEST and np.isfinite(array).all():
                parts = quantise(array, step, _scales(name, array, units) if by_feature else None)
            if parts is None:
                tensors[name] = array
                continue
            tensors |= {f"{name}.{part}": values for part, values in parts.items()}
            notes[name] = {
                "dtype": stored.dtype.name,
                "shape": list(stored.shape),
                "step": step,
                "wide": "high" in parts,
                "by_feature": by_feature,
            }
    return write_tensors(path, tensors, **metadata, **{_NOTES: json.dumps(notes)})


def read_quantised(path: Path, restored: Path, *, units: np.ndarray | None = None) -> Path:
    """Write the file that `write_quantised` was made from, with arrays of the same types and shapes.

    Raises
    ------
    UserError
        The file is damaged.
    """
    with opened_tensors(path, "packed part of a model") as file:
        notes = _read_notes(file.metadata[_NOTES])
        parts = {f"{name}.{part}" for name in notes for part in ("low", "high", _UNITS)}
        tensors = {
            name: file.array(name, stored.dtype.name, len(stored.shape), finite=False)
            for name, stored in file.header.items()
            if name not in parts
        }
        tensors |= {name: _restored(file, name, note, units) for name, note in notes.items()}
        metadata = {name: value for name, value in file.metadata.items() if name != _NOTES}
    return write_tensors(restored, tensors, **metadata)


def write_units(path: Path, sd: np.ndarray) -> np.ndarray:
    """Write the units of the features at each voxel, from their standard deviations (P, d), and return them."""
    units = units_of(sd)
    write_tensors(path, {_UNITS: units})
    return units


def read_units(path: Path) -> np.ndarray:
    """Read what `write_units` wrote.

    Raises
    ------
    UserError
        The file is damaged.
    """
    with opened_tensors(path, "units of features") as file:
        return file.array(_UNITS, "int8", 2)


def units_of(sd: np.ndarray) -> np.ndarray:
    """Return the nearest half powers of two of positive numbers, as int8: 2 is the unit 2, 4 the unit 4."""
    smallest = sd.max() * 2.0**-40 or 1.0
    return np.clip(np.rint(2 * np.log2(np.maximum(sd, smallest))), -127, 127).astype(np.int8)


def quantise(array: np.ndarray, step: float, scales: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
    """Return the whole numbers of an array.

    Parameters
    ----------
    array : ndarray of float
        Finite; its longest axis is that of the voxels.
    step : float
        Of the rounding, in units. The standard deviation of the rounding errors is 0.29 times that.
    scales : ndarray, shape that broadcasts to `array`, optional
        Units; by default those of the root mean square at each voxel, which are returned.

    Returns
    -------
    dict of str to ndarray, or None
        ``low`` and, unless all are 0, ``high``, (k, P) int8: the differences of the whole numbers are low + 256 * high,
        modulo 65536; ``units``, (P,) int8. None if values differ so much from their units that they do not fit.
    """
    parts = {}
    if scales is not None:
        scaled = _columns(array / scales)
    else:
        scaled = _columns(array).astype(np.float64)
        parts[_UNITS] = units_of(np.sqrt(np.mean(np.square(scaled), axis=0)))
        scaled /= 2.0 ** (parts[_UNITS] / 2)
    codes = np.rint(scaled / step)
    if np.abs(codes).max() > _LARGEST_CODE:
        return None
    differences = _as_int16(np.diff(codes.astype(np.int32), axis=1, prepend=0))
    low = np.ascontiguousarray(differences.astype(np.int8))  # modulo 256
    high = (differences.astype(np.int32) - low) // _PLANE
    parts["low"] = low
    return parts | {"high": np.ascontiguousarray(high.astype(np.int8))} if high.any() else parts


def _read_notes(text: str) -> dict[str, _Note]:
    try:
        return _NOTES_BY_NAME.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError("the description of its whole numbers is invalid") from error


def _restored(file: TensorFile, name: str, note: _Note, units: np.ndarray | None) -> np.ndarray:
    axis, size = int(np.argmax(note.shape)), int(np.prod(note.shape))
    length = note.shape[axis]
    codes = file.array(f"{name}.low", "int8", 2).astype(np.int32)
    if codes.shape != (size // length, length):
        raise ValueError(f"{name} is described as {note.shape}, found {codes.shape}")
    if note.wide:
        codes += _PLANE * file.array(f"{name}.high", "int8", 2).astype(np.int32)
    codes = _as_int16(np.cumsum(codes, axis=1, dtype=np.int32)).astype(np.float32)
    codes *= np.float32(note.step)
    if not note.by_feature:
        own = file.array(f"{name}.{_UNITS}", "int8", 1)
        if own.shape != (length,):
            raise ValueError(f"the units of {name} do not match its shape")
        codes *= (2.0 ** (own / 2)).astype(np.float32)
    others = [length for number, length in enumerate(note.shape) if number != axis]
    array = np.moveaxis(codes.reshape(*others, length), -1, axis)
    if note.by_feature:
        if units is None or not _has_features(name, array.shape, units):
            raise ValueError(f"the units of {name} are missing")
        array = array * _scales(name, array, units)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, note.dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


def _has_features(name: str, shape: tuple[int, ...], units: np.ndarray) -> bool:
    voxels, dimension = units.shape
    last = dimension * (dimension + 1) // 2 if name == "packed" else dimension
    return len(shape) >= 2 and shape[-2:] == (voxels, last) and max(shape) == voxels


def _scales(name: str, array: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """Units of an array by voxel and feature; elements of a packed matrix multiply the feature of their column."""
    assert units is not None
    scales = (2.0 ** (units / 2)).astype(np.float32)
    if name != "packed":
        return scales
    _, columns = np.tril_indices(units.shape[1])
    return 1 / scales[:, columns]


def _as_int16(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers modulo 65536, from -32768 to 32767."""
    return numbers.astype(np.int16)


def _columns(array: np.ndarray) -> np.ndarray:
    """Return an array as (k, P), with its longest axis last."""
    axis = int(np.argmax(array.shape))
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
