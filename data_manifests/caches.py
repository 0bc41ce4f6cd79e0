"""Cache folders of numba and matplotlib, chosen once before either package is imported.

numba executes the code that it finds in its cache. Only folders that no other user can write to are used.
"""

import atexit
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import private

_COMPILED = (
    "evaluation/metrics",
    "models/features",
    "models/learned",
    "models/ocsvm/numba_solver",
    "models/prototypes",
    "preprocessing",
)
"""Folders of the package that contain compiled functions."""
REORDERING = {"contract", "reassoc", "nsz"}
"""Options of LLVM under which sums may be reordered."""


@dataclass(frozen=True)
class Caches:
    """Chosen cache folders.

    Attributes
    ----------
    compiled : bool
        Whether compiled code is cached.
    notes : tuple of str
        Messages for the user about cache folders that are not the default ones.
    """

    compiled: bool
    notes: tuple[str, ...]


@functools.cache
def choose_caches() -> Caches:
    """Choose the cache folders and set them in the environment, so that child processes use the same ones.

    Compiled code is cached in the first usable folder of: ``NUMBA_CACHE_DIR``; the package's own folders; the user's
    cache folder; a temporary folder that is deleted when this process ends. matplotlib keeps its default folders
    (``MPLCONFIGDIR``, or the user's folders) if they are writable.
    """
    notes = []
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named and not _private(Path(named)):
        notes.append(
            f"NUMBA_CACHE_DIR: {named} is ignored because it is not writable or another user could write to it."
        )
        named = None
    package = Path(__file__).absolute().parent.parent
    user = _user_folder()
    temporary = functools.cache(_temporary_folder)
    # One decision for all folders of the package, because numba has a single cache setting.
    compiled = bool(named) or all(_can_cache_in_package(package / name) for name in _COMPILED)
    if not compiled and (folder := user or temporary()) is not None and _private(folder / "numba"):
        named, compiled = str(folder / "numba"), True
        notes.append(f"Compiled code is cached in {named}, not in the package's own folder.")
    if named:
        os.environ["NUMBA_CACHE_DIR"] = named
    else:
        os.environ.pop("NUMBA_CACHE_DIR", None)
    if not compiled:
        notes.append("Compiled code is not cached: found no writable folder. Every start takes longer.")
    if not _matplotlib_can_write() and (folder := user or temporary()) is not None:
        os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
        notes.append(f"matplotlib keeps its font cache in {private(folder / 'matplotlib', 'a folder')}.")
    return Caches(compiled, tuple(notes))


def compiled(function: Callable, **options: Any) -> Any:
    """Compile a function with ``numba.njit(nogil=True, **options)``, cached on disk if a cache folder is available."""
    import numba

    use_cache = choose_caches().compiled
    # numba reads the environment at import, which may have been before the folder was chosen.
    import numba.core.config

    setattr(numba.core.config, "CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))  # noqa: B010 (set by numba at import)
    if use_cache:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except (RuntimeError, OSError):
            # The folder was deleted or is full: compile without a cache.
            pass
    return numba.njit(nogil=True, **options)(function)


def compiled_reordering(function: Callable) -> Any:
    """Compile a function whose sums may be reordered, which vectorisation requires; NaN and infinity are kept."""
    return compiled(function, fastmath=REORDERING)


def _user_folder() -> Path | None:
    """Return the user's cache folder for voxout, or None without a writable home folder."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base)
    else:
        try:
            root = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and no entry in the user database
            return None
        if not root.parent.is_dir():
            return None  # a missing home folder is not created
    folder = root / "voxout"
    return folder if root.is_absolute() and _private(folder) else None


def _temporary_folder() -> Path | None:
    try:
        folder = Path(tempfile.mkdtemp(prefix="voxout-caches-"))  # mode 0700, unpredictable name
    except OSError:
        return None
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must not delete the folder of its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _private(folder: Path) -> bool:
    """Whether the folder, created if missing, is owned by this user, writable, and closed to other users."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return False
    owned = state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return owned and _writable(folder)


def _can_cache_in_package(folder: Path) -> bool:
    """Whether ``__pycache__`` of a source folder is writable and no more open to other users than the folder itself."""
    cache = folder / "__pycache__"
    try:
        cache.mkdir(exist_ok=True)
        opened = cache.stat().st_mode & ~folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except OSError:
        return False
    return not opened and not folder.stat().st_mode & stat.S_IWOTH and _writable(cache)


def _matplotlib_can_write() -> bool:
    if named := os.environ.get("MPLCONFIGDIR"):
        return _can_be_made(Path(named))
    try:
        home = Path.home()
    except RuntimeError:
        return False
    if not home.is_dir():
        return False
    config, cache = (
        Path(os.environ.get(variable) or home / name) / "matplotlib"
        for variable, name in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    )
    return _can_be_made(config) and _can_be_made(cache)


def _can_be_made(folder: Path) -> bool:
    """Whether a folder is writable, or could be made, without making it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _writable(folder: Path) -> bool:
    # Try to write: the mode bits do not always say what the file system allows.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
