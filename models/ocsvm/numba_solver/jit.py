"""Numba compilation options of the solver, and aligned memory."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ....data_manifests.caches import choose_caches, compiled

LANES = 8
"""Number of float64 values in the widest vector registers."""


def _forget_outdated(folder: Path) -> None:
    """Delete numba's cache files that are older than the newest source file.

    Numba checks only the file that defines a function, so it would keep using an outdated copy of a helper function
    from another file.
    """
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    caches = [folder / "__pycache__"]
    if elsewhere := os.environ.get("NUMBA_CACHE_DIR"):
        caches += Path(elsewhere).glob(f"{folder.name}_*")
    for index in (index for cache in caches for index in cache.glob("*.nbi")):
        # Another process may be deleting the file too, or the folder may belong to another user.
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()


choose_caches()
_forget_outdated(Path(__file__).parent)

# Sums may be reordered, which vectorisation requires. Callers have excluded NaN and infinity.
_FAST = {"contract", "reassoc", "nsz", "nnan"}


def fastmath(function: Callable) -> Any:
    """Compile a function that allocates no arrays; without reference counting, its arguments need no locks."""
    return compiled(function, fastmath=_FAST, _nrt=False)


def inner(function: Callable) -> Any:
    """Compile a function as `fastmath` does, but in less time: it cannot be called from Python."""
    return compiled(function, fastmath=_FAST, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def allocating(function: Callable) -> Any:
    """Compile a function that allocates arrays, with the same options as `fastmath`."""
    return compiled(function, fastmath=_FAST)


def nan_safe(function: Callable) -> Any:
    """Compile a function whose input may contain NaN."""
    return compiled(function, fastmath={"contract", "reassoc"})


def strict(function: Callable) -> Any:
    """Compile a function that depends on the order of its operations."""
    return compiled(function, fastmath={"contract"})


@strict
def whole_lanes(n):
    """Round n up to a multiple of `LANES`."""
    return (n + LANES - 1) // LANES * LANES


@strict
def aligned(n, width):
    """Zeros (n, width) aligned to a cache line, from which full vectors load fastest."""
    raw = np.zeros(n * width + LANES)
    first = (-raw.ctypes.data % (8 * LANES)) // 8
    return raw[first : first + n * width].reshape(n, width)
