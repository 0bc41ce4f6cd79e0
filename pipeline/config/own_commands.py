"""Check that programs to run are named by the user, in a configuration file or on the command line.

Settings that are saved in a folder, of a model or of an earlier run, are data: their commands are not run.
"""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from .config import Config

COMMANDS = ("preprocessing.brain_extraction.command",)
"""Settings that name a program. No setting names a path."""


def require_own_commands(config: Config, named: Collection[str], saved: Path) -> None:
    """Refuse to run a program that only saved settings name.

    Parameters
    ----------
    config : Config
        The resolved configuration.
    named : collection of str
        Settings named in the user's own file or on the command line.
    saved : Path
        The file from which the other settings come.

    Raises
    ------
    UserError
        A program is named only in `saved`.
    """
    for name in COMMANDS:
        command = _value(config, name)
        if command and name not in named:
            raise UserError(
                f"{private(saved, 'the saved settings')}: {name} names a program to run ({_shown(command)}), expected "
                "one that you name yourself: voxout runs no program from saved settings. Name yours with --set "
                f"{name}='...' or in a file after --config; it may be the same one if you trust it."
            )


def with_commands_of(config: Config, fitted: Config) -> Config:
    """Return a model's settings with the user's commands, since paths of programs differ between machines."""
    extraction = fitted.preprocessing.brain_extraction.model_copy(
        update={"command": config.preprocessing.brain_extraction.command}
    )
    preprocessing = fitted.preprocessing.model_copy(update={"brain_extraction": extraction})
    return fitted.model_copy(update={"preprocessing": preprocessing})


def _value(config: Config, name: str) -> str:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _shown(command: str) -> str:
    quoted = shlex.quote(" ".join(command.split()))
    return quoted if len(quoted) <= 200 else f"{quoted[:200]}..."
