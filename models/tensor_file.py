"""Small parts of a fitted model, each one safetensors file; and the header of every safetensors file, read strictly.

A header says where in its file each array lies. It is data from elsewhere: before anything is mapped or read by it, it
has to add up, byte by byte, to the file that it stands in.
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
"""Bytes: ten thousand arrays take a tenth of it."""
DTYPES = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "U16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}
"""Types of numbers that a model is made of, by safetensors' names for them."""
_Count = Annotated[int, Field(ge=0, lt=2**48)]


class _Entry(Content):
    dtype: str
    shape: list[_Count] = Field(max_length=16)
    data_offsets: tuple[_Count, _Count]


_ENTRIES = TypeAdapter(dict[str, _Entry])
_ABOUT = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Tensor:
    """Where an array lies in its file.

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
    """What a safetensors file says that it holds, as far as it is true: arrays by name, and words about them.

    Raises
    ------
    ValueError
        The header does not add up to the file: lengths, types, or places that lie outside it, on top of each other or
        apart.
    OSError
    """
    size = path.stat().st_size
    if not path.is_file() or size < 8:
        raise ValueError("it is no safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"its header has {length:,} bytes by its own word, and the file {size:,}")
        text = file.read(length)
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("its header is no table")
        about = _ABOUT.validate_python(values.pop("__metadata__", {}), strict=True)
        entries = _ENTRIES.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"its header is wrong at {place}: {problem['msg']}") from error
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("its header is no JSON") from error
    found, at, begin = {}, 0, 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ValueError(f"{name} is of the type {entry.dtype}, expected one of {', '.join(DTYPES)}")
        first, last = entry.data_offsets
        if first != at or last - first != math.prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"{name} does not lie where its header says")
        found[name], at = Tensor(dtype, tuple(entry.shape), begin + first), last
    if begin + at != size:
        raise ValueError(f"its arrays take {begin + at:,} bytes by its header, and the file has {size:,}")
    return found, about


class TensorFile:
    """An open file of arrays, each asked for with what it has to be."""

    def __init__(self, header: Mapping[str, Tensor], about: Mapping[str, str], file: Any):
        self.header, self.about = header, about
        self._file = file

    def array(self, name: str, dtype: str, dimensions: int, *, finite: bool = True) -> np.ndarray:
        """Read an array.

        Raises
        ------
        ValueError, KeyError
            It is not there, of another type, of another number of dimensions, or not finite.
        """
        tensor = self.header[name]
        if tensor.dtype != np.dtype(dtype) or len(tensor.shape) != dimensions or 0 in tensor.shape:
            raise ValueError(f"{name} is {tensor.dtype.name} {tensor.shape}, expected {dimensions} axes of {dtype}")
        array = self._file.get_tensor(name)
        if finite and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        return array

    def number(self, name: str) -> float:
        """A finite number above 0 among the words about the arrays."""
        value = float(self.about[name])
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}, expected a number above 0")
        return value


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], **about: str) -> Path:
    """Write named arrays, and words about them, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(canonical(save(dict(tensors), about or None)))
    return path


def canonical(content: bytes) -> bytes:
    """A safetensors file with its words in alphabetical order: safetensors itself shuffles them at every start."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    if words := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(words.items()))} | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # keeps the numbers aligned
    return len(text).to_bytes(8, "little") + text + content[begin:]


@contextmanager
def opened_tensors(path: Path, what: str) -> Iterator[TensorFile]:
    """What `write_tensors` wrote, open.

    Raises
    ------
    UserError
        The file, or something that is looked for in it, is missing or damaged; the sentence says that it holds no
        `what`.
    """
    try:
        # Judged before the library maps it.
        header = read_header(path)
        with safe_open(path, framework="numpy") as file:
            yield TensorFile(*header, file)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        found = getattr(error, "strerror", None) or (f"no {error}" if isinstance(error, KeyError) else str(error))
        raise UserError(
            f"{private(path)}: holds no {what} ({found.splitlines()[0] if found else type(error).__name__}). Run the "
            "stage fit again."
        ) from error
