"""How the core is compiled, and memory that suits its vectors."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ....data_manifests.caches import choose_caches, compiled

LANES = 8
"""Numbers in float64 that the widest vector registers hold."""


def _forget_outdated(folder: Path) -> None:
    """Delete what numba keeps on disk of an older core.

    Numba looks at the file that defines a function, and would go on using a copy of a helper that has changed in
    another file.
    """
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    caches = [folder / "__pycache__"]
    if elsewhere := os.environ.get("NUMBA_CACHE_DIR"):
        caches += Path(elsewhere).glob(f"{folder.name}_*")
    for index in (index for cache in caches for index in cache.glob("*.nbi")):
        # Another process may be doing the same, or the folder be somebody else's, who then replaces it as a whole.
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()


choose_caches()
_forget_outdated(Path(__file__).parent)

# Sums may be reordered (they vectorise only then); no step sees NaN or infinity, the callers have checked.
_FAST = {"contract", "reassoc", "nsz", "nnan"}


def fastmath(function: Callable) -> Any:
    """Compile what makes no arrays: those that it is handed are then not counted, at the cost of a lock each."""
    return compiled(function, fastmath=_FAST, _nrt=False)


def allocating(function: Callable) -> Any:
    """Compile as `fast` does what makes arrays."""
    return compiled(function, fastmath=_FAST)


def nan_safe(function: Callable) -> Any:
    """Compile what may meet NaN."""
    return compiled(function, fastmath={"contract", "reassoc"})


def strict(function: Callable) -> Any:
    """Compile what counts on the order of its arithmetic."""
    return compiled(function, fastmath={"contract"})


@strict
def whole_lanes(n):
    """n rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@strict
def aligned(n, width):
    """Zeros (n, width) that begin at a cache line, as whole vectors load fastest from there."""
    raw = np.zeros(n * width + LANES)
    first = (-raw.ctypes.data % (8 * LANES)) // 8
    return raw[first : first + n * width].reshape(n, width)
