"""Safetensors files of a fitted model, and strict validation of safetensors headers.

The header gives the position of each array in the file. It is untrusted input: it must account for every byte of the
file before any array is mapped or read.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..data_manifests.atomic_write import atomic_write
from ..data_manifests.errors import UserError, private
from ..data_manifests.typed_json import Content

_LONGEST_HEADER = 2**24
"""In bytes. The header of ten thousand arrays takes a tenth of it."""
DTYPES = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I64": np.dtype("<i8"),
}
"""Number types allowed in a model, by their safetensors names."""
_Count = Annotated[int, Field(ge=0, lt=2**48)]


class _Entry(Content):
    dtype: str
    shape: list[_Count] = Field(max_length=16)
    data_offsets: tuple[_Count, _Count]


_ENTRIES = TypeAdapter(dict[str, _Entry])
_METADATA = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Tensor:
    """Position of an array in a file.

    Attributes
    ----------
    dtype : numpy dtype
    shape : tuple of int
    offset : int
        In bytes, from the start of the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and validate the header of a safetensors file.

    Returns
    -------
    dict of str to Tensor
        The arrays by name.
    dict of str to str
        The metadata.

    Raises
    ------
    ValueError
        The header does not match the file: wrong lengths or types, or arrays that lie outside the file, overlap or
        leave gaps.
    OSError
    """
    size = path.stat().st_size
    if not path.is_file() or size < 8:
        raise ValueError("it is not a safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"its header claims {length:,} bytes, but the file has {size:,}")
        text = file.read(length)
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("its header is not a JSON object")
        metadata = _METADATA.validate_python(values.pop("__metadata__", {}), strict=True)
        entries = _ENTRIES.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"its header is invalid at {location}: {problem['msg']}") from error
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("its header is not JSON") from error
    tensors, end, begin = {}, 0, 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ValueError(f"{name} has type {entry.dtype}, expected one of {', '.join(DTYPES)}")
        first, last = entry.data_offsets
        if first != end or last - first != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"the offsets of {name} do not match its shape and the arrays before it")
        tensors[name], end = Tensor(dtype, tuple(entry.shape), begin + first), last
    if begin + end != size:
        raise ValueError(f"its header describes {begin + end:,} bytes, but the file has {size:,}")
    return tensors, metadata


class TensorFile:
    """An open safetensors file whose arrays are checked as they are read."""

    def __init__(self, header: Mapping[str, Tensor], metadata: Mapping[str, str], file: Any):
        self.header, self.metadata = header, metadata
        self._file = file

    def array(self, name: str, dtype: str, dimensions: int, *, finite: bool = True) -> np.ndarray:
        """Read an array and check its type and number of dimensions.

        Raises
        ------
        ValueError, KeyError
            The array is missing, has another type or number of dimensions, or is not finite.
        """
        tensor = self.header[name]
        if tensor.dtype != np.dtype(dtype) or len(tensor.shape) != dimensions or 0 in tensor.shape:
            raise ValueError(f"{name} is {tensor.dtype.name} {tensor.shape}, expected {dimensions} axes of {dtype}")
        array = self._file.get_tensor(name)
        if finite and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        return array

    def number(self, name: str) -> float:
        """Read a finite number above 0 from the metadata."""
        value = float(self.metadata[name])
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}, expected a number above 0")
        return value


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], **metadata: str) -> Path:
    """Write named arrays and metadata to a safetensors file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(canonical(save(dict(tensors), metadata or None)))
    return path


def another_mask_error(folder: Path, parts: str) -> UserError:
    """Error of a part of a model that does not belong to its brain mask; `parts` as in "detectors were"."""
    return UserError(
        f"{private(folder, 'its folder')}: its {parts} fitted on another brain mask, expected that of the model. Fit "
        "the model again."
    )


def canonical(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file: safetensors writes it in an order that differs between processes."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    if metadata := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(metadata.items()))} | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # keeps the arrays aligned
    return len(text).to_bytes(8, "little") + text + content[begin:]


@contextmanager
def opened_tensors(path: Path, what: str) -> Iterator[TensorFile]:
    """Open a file written by `write_tensors`.

    Parameters
    ----------
    path : Path
    what : str
        Content of the file, for the error message "holds no ...".

    Raises
    ------
    UserError
        The file, or an array or metadata entry read from it, is missing or damaged.
    """
    try:
        # Validate before the library maps the file.
        header = read_header(path)
        with safe_open(path, framework="numpy") as file:
            yield TensorFile(*header, file)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        found = getattr(error, "strerror", None) or (f"no {error}" if isinstance(error, KeyError) else str(error))
        raise UserError(
            f"{private(path)}: holds no {what} ({found.splitlines()[0] if found else type(error).__name__}). Run the "
            "stage fit again."
        ) from error
