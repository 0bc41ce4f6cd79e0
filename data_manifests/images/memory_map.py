"""Memory-mapped arrays."""

import errno
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import numpy.typing as npt


def new_mapped_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create a ``.npy`` file, mapped for writing, and reserve its space on disk.

    Raises
    ------
    OSError
        Not enough space. The file is deleted.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with path.open("r+b") as file:
            _reserve(file, path.stat().st_size)
    except OSError:
        del array
        path.unlink()
        raise
    return array


def release_pages(array: np.ndarray) -> None:
    """Release the memory of the pages of a mapped file that were read; they count as memory of this process.

    Changes to a copy-on-write map are lost. Arrays that are not mapped are left unchanged.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def temporary_array(folder: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create an array in a temporary file without a name, which is deleted with the array.

    Raises
    ------
    OSError
        Not enough space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        _reserve(file, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)  # type: ignore[call-overload] (any binary file will do)


def _reserve(file: IO[bytes], size: int) -> None:
    """Reserve space on disk: without it, a full disk would kill the process at an assignment, without a message."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        # Some file systems cannot reserve space; the array can be used without it.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def rows_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of an array, which may be changed; of a mapped one, only one row is in memory at a time."""
    for row in array:
        yield np.asarray(row)
        release_pages(array)
