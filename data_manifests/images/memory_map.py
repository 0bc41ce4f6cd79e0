"""Files that are mapped into memory."""

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt


def new_mapped_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new ``.npy`` file, mapped for writing, whose room on disk is reserved.

    Without the room, a disk that is full would end the process in the middle of an assignment, without a word.

    Raises
    ------
    OSError
        There is not enough room. The file is deleted.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        # Some file systems cannot reserve room; the array is usable there as before.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            del array
            path.unlink()
            raise
    return array


def release_pages(array: np.ndarray) -> None:
    """Give back the memory of what was read of a mapped file: its pages would count as this process's.

    What was written to a copy-on-write map is lost. Nothing happens to an array that is not mapped.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
