"""Where numba keeps compiled code and matplotlib its list of fonts: chosen once, before either is imported.

What numba keeps is read back as code, so only folders count that no other user can fill.
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

_COMPILED = ("evaluation", "models/ocsvm_numba")
"""Folders of the package with compiled functions."""


@dataclass(frozen=True)
class Caches:
    """The choice.

    Attributes
    ----------
    compiled : bool
        Whether compiled code is kept at all.
    notes : tuple of str
        What differs from the ordinary places, in sentences.
    """

    compiled: bool
    notes: tuple[str, ...]


@functools.cache
def choose_caches() -> Caches:
    """Choose the folders, and name them in the environment, so that child processes use the same.

    Compiled code goes to ``NUMBA_CACHE_DIR`` where that is set; else beside the package's own code; else to the user's
    cache folder; else to a temporary folder that lasts as long as this process. matplotlib keeps its own choice
    (``MPLCONFIGDIR``, or the user's folders) where it can be written to.
    """
    notes = []
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named and not _private(Path(named)):
        notes.append(f"NUMBA_CACHE_DIR: {named} is not writable, or another user could write to it, and is not used.")
        named = None
    package = Path(__file__).absolute().parent.parent
    user = _user_folder()
    temporary = functools.cache(_temporary_folder)
    # Decided for all folders of the package at once: numba knows one place for everything.
    compiled = bool(named) or all(_beside_code(package / name) for name in _COMPILED)
    if not compiled and (folder := user or temporary()) is not None and _private(folder / "numba"):
        named, compiled = str(folder / "numba"), True
        notes.append(f"Compiled code is kept in {named}: the package's own folder is not used for it.")
    if named:
        os.environ["NUMBA_CACHE_DIR"] = named
    else:
        os.environ.pop("NUMBA_CACHE_DIR", None)
    if not compiled:
        notes.append("Compiled code is not kept: no folder for it is writable. Every start takes longer.")
    if not _matplotlib_has_a_place() and (folder := user or temporary()) is not None:
        os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
        notes.append(f"matplotlib keeps its list of fonts in {private(folder / 'matplotlib', 'a folder')}.")
    return Caches(compiled, tuple(notes))


def compiled(function: Callable, **options: Any) -> Any:
    """``numba.njit`` with the options, without the lock of the interpreter; kept on disk where there is a place."""
    import numba

    kept = choose_caches().compiled
    # numba reads the environment when it is imported, which may have been before the choice.
    import numba.core.config

    setattr(numba.core.config, "CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))  # noqa: B010 (set by numba at import)
    if kept:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except (RuntimeError, OSError):
            # The folder has gone since, or filled up: compiling anew works all the same.
            pass
    return numba.njit(nogil=True, **options)(function)


def _user_folder() -> Path | None:
    """The user's cache folder for this program, or None: no home, or none that can be written to."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base)
    else:
        try:
            root = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and no entry among the system's users
            return None
        if not root.parent.is_dir():
            return None  # a home that does not exist is not made
    folder = root / "voxout"
    return folder if root.is_absolute() and _private(folder) else None


def _temporary_folder() -> Path | None:
    try:
        folder = Path(tempfile.mkdtemp(prefix="voxout-caches-"))  # 0700, under a name that nobody can foresee
    except OSError:
        return None
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves its parent's folder alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _private(folder: Path) -> bool:
    """Whether the folder, made where missing, is ours, writable, and not to be filled by another user."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return False
    ours = state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return ours and _writable(folder)


def _beside_code(folder: Path) -> bool:
    """Whether compiled code may lie beside its source, in a folder no more open than the source's own."""
    cache = folder / "__pycache__"
    try:
        cache.mkdir(exist_ok=True)
        opened = cache.stat().st_mode & ~folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    except OSError:
        return False
    return not opened and not folder.stat().st_mode & stat.S_IWOTH and _writable(cache)


def _matplotlib_has_a_place() -> bool:
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
    # Tried, not asked: what a file system allows is not always what its modes say.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
