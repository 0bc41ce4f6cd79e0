"""Origin of a result: the command, the settings and the code that gave it.

Records keep it beside the inputs of a result. It is no part of their identity, so that the same inputs are up to date
whatever command or commit they were worked on with.
"""

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config.config import Config
from ..config.diff import flat_settings
from .attempts import host_class

_GIT_LIMIT_S = 10


@dataclass(frozen=True)
class Origin:
    """What gave a result, besides its inputs.

    Attributes
    ----------
    command : str
        As ``"voxout run"``, without its arguments, which may hold names; empty: not known.
    seed : int or None
    settings : mapping from name to value
        Those that differ from the defaults of this version.
    commit : str
        State of the clone that voxout runs from (see `commit_of_clone`).
    """

    command: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""

    @classmethod
    def of(cls, command: str, config: Config) -> "Origin":
        """Return the origin of what a command does now with a configuration."""
        return cls(command, config.seed, changed_settings(config), commit_of_clone())

    def recorded(self) -> dict[str, Any]:
        """Return it for a record, with the kind of the machine that worked."""
        return asdict(self) | {"host": host_class()}


def changed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as ``{"models.detector.nu": 0.05}``."""
    return other_than_default(flat_settings(config.model_dump(mode="json")))


def other_than_default(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some flat settings that differ from the defaults of this version, without the prefix."""
    defaults = flat_settings(Config().model_dump(mode="json"))
    return {name.removeprefix("settings."): value for name, value in given.items() if value != defaults.get(name)}


@functools.cache
def commit_of_clone() -> str:
    """Return the commit of the git clone that voxout runs from; empty if it runs from none, or git is missing.

    Changed files that git tracks are noted: ``"1a2b3c... with changes"``.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit} with changes" if changed else commit


def _git(root: Path, *words: str) -> str:
    # Without those that name another clone, as within a hook; and without writing to a clone that others use.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=True, env=environment)
    return done.stdout.strip()
