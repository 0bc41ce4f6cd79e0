"""Files that are mapped into memory."""

import mmap

import numpy as np


def forget_pages(array: np.ndarray) -> None:
    """Give back the memory of what was read of a mapped file: its pages would count as this process's.

    What was written to a copy-on-write map is lost. Nothing happens to an array that is not mapped.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
