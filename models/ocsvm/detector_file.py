"""Storage of detectors: one safetensors file and one JSON file.

The support vectors are written first, block by block, so that those of a brain need not fit into memory. The header is
reserved with spaces (which the format allows) and filled in at the end. Files are memory-mapped on loading: opening
detectors runs no code and reads no support vectors.

An array with equal values (gamma, if fixed; the number of subjects, if none is missing) is stored as a single value.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write, make_temporary
from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import Content, read_json
from ..tensor_file import Tensor, read_header
from .detector_arrays import DetectorArrays

_FORMAT = "voxout.detectors"
_VERSION = 1
_HEADER_BYTES = 2048
# The total weight is left out if all weights are 1.
_DTYPES = {
    "support_vectors": ("float16", "float32"),
    "dual_coef": ("uint16", "float32"),
    "n_support": ("uint16",),
    "centred_offset": ("float64",),
    "gamma": ("float64",),
    "n_fitted": ("uint16",),
    "total_weight": ("float64",),
}
_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64", "uint16": "U16"}
_Count = Annotated[int, Field(ge=1)]


class _Notes(Content):
    format: Literal["voxout.detectors"]
    version: Literal[1]
    nu: Annotated[float, Field(gt=0, le=1)]
    gamma: Annotated[float, Field(gt=0)] | Literal["scale"]
    locations: _Count
    dimension: _Count
    support_vectors: _Count
    precision: Literal["float16", "float32"]


class DetectorWriter:
    """Writer of detectors under temporary names, which `finish` renames. Close it, or use it in a with statement."""

    def __init__(self, path: Path, dimension: int, precision: str):
        self._tensors, self._json = _files(path)
        self._temporary = make_temporary(self._tensors)
        self._dimension = dimension
        self._dtype = np.dtype(precision)
        self._rows = 0
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by close)
        self._file.write(b" " * (8 + _HEADER_BYTES))

    def __enter__(self) -> "DetectorWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def add_support_vectors(self, vectors: np.ndarray) -> None:
        """Append rows (n, d)."""
        np.ascontiguousarray(vectors, dtype=self._dtype).tofile(self._file)
        self._rows += len(vectors)

    def finish(self, arrays: DetectorArrays, *, nu: float, gamma: float | str) -> None:
        """Write all other arrays after the support vectors were added, and rename the files into place."""
        header: dict[str, dict] = {}
        at = 0

        def note(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
            nonlocal at
            size = int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size

        note("support_vectors", self._dtype, (self._rows, self._dimension))
        # Arrays of the widest types come first, which keeps every array aligned.
        present = arrays.present()
        names = sorted(present, key=lambda name: -present[name].dtype.itemsize)
        padding = -at % 8
        if padding:
            note("padding", np.dtype("uint16"), (padding // 2,))
            self._file.write(bytes(padding))
        for name in names:
            if name != "support_vectors":
                array = present[name]
                if len(array) and array.min() == array.max():
                    array = array[:1]
                note(name, array.dtype, array.shape)
                np.ascontiguousarray(array).tofile(self._file)
        text = json.dumps(header).encode()
        self._file.seek(0)
        self._file.write(_HEADER_BYTES.to_bytes(8, "little") + text.ljust(_HEADER_BYTES))
        self._file.close()
        described = {
            "format": _FORMAT,
            "version": _VERSION,
            "nu": nu,
            "gamma": gamma,
            "locations": len(arrays.n_support),
            "dimension": self._dimension,
            "support_vectors": self._rows,
            "precision": self._dtype.name,
        }
        with atomic_write(self._json) as temporary_json:
            temporary_json.write_text(json.dumps(described, indent=2) + "\n")
            os.replace(self._temporary, self._tensors)

    def close(self) -> None:
        """Close the file, and delete it unless it was completed."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def read_detectors(path: Path) -> tuple[DetectorArrays, float, float | str]:
    """Memory-map saved detectors; return (arrays, nu, gamma).

    Raises
    ------
    UserError
        The files are missing, damaged or not detectors.
    """
    tensors, described = _files(path)
    for file in (tensors, described):
        if not file.is_file():
            raise UserError(
                f"{private(file)}: no such file, expected saved detectors. Check the path, or fit the detectors first."
            )
    advice = "Copy or fit the detectors again."
    notes = read_json(described, _Notes, f"the description of {_FORMAT} version {_VERSION}", advice)
    try:
        header, _ = read_header(tensors)
        names = [name for name in _DTYPES if name in header or name != "total_weight"]
        mapped = {name: _mapped(tensors, name, header, notes) for name in names}
        arrays = DetectorArrays(**mapped)
        if int(arrays.n_support.sum(dtype=np.int64)) != notes.support_vectors or arrays.n_support.min() < 1:
            raise ValueError("support vectors are missing")
        if arrays.n_fitted.min() < 1:
            raise ValueError("a detector was fitted on no subjects")
        if not (
            np.isfinite(arrays.centred_offset).all() and np.isfinite(arrays.gamma).all() and arrays.gamma.min() > 0
        ):
            raise ValueError("an offset is not finite, or a gamma is not a positive number")
        if (weight := arrays.total_weight) is not None and not (np.isfinite(weight).all() and weight.min() > 0):
            raise ValueError("a sum of weights is not a positive number")
        return arrays, notes.nu, notes.gamma
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{private(path)}: not readable as detectors ({(str(error) or type(error).__name__).splitlines()[0]}), "
            f"expected {_FORMAT} version {_VERSION}. {advice}"
        ) from error


def _mapped(path: Path, name: str, header: dict[str, Tensor], notes: _Notes) -> np.ndarray:
    rows = (notes.support_vectors, notes.dimension)
    shape = {"support_vectors": rows, "dual_coef": rows[:1]}.get(name, (notes.locations,))
    tensor = header[name]
    single = name != "support_vectors" and tensor.shape == (1,)
    expected = (notes.precision,) if name == "support_vectors" else _DTYPES[name]
    if tensor.dtype.name not in expected or (tensor.shape != shape and not single):
        raise ValueError(f"{name} is {tensor.dtype.name} {tensor.shape}, expected {shape} of the described type")
    array = np.memmap(path, dtype=tensor.dtype, mode="r", offset=tensor.offset, shape=tensor.shape)
    return np.broadcast_to(array, shape) if single else array


def _files(path: Path) -> tuple[Path, Path]:
    if path.suffix == ".safetensors":
        return path, path.with_suffix(".json")
    return path / "detectors.safetensors", path / "detectors.json"
