"""Programs are run where the user names them: in a configuration file of their own or on the command line.

What comes with a folder, be it a model's or an earlier run's, is data.
"""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from .config import Config

COMMANDS = ("preprocessing.brain_extraction.command",)
"""Settings that name a program. There is none that names a path."""


def require_own_commands(config: Config, named: Collection[str], saved: Path) -> None:
    """Refuse to run a program that no one but a saved file names.

    Parameters
    ----------
    config : Config
        As resolved.
    named : collection of str
        Settings that the user's own file or command line names.
    saved : Path
        Where the other settings come from.

    Raises
    ------
    UserError
    """
    for name in COMMANDS:
        command = _value(config, name)
        if command and name not in named:
            raise UserError(
                f"{private(saved, 'the saved settings')}: {name} names a program to run ({_shown(command)}), expected "
                "one that you name yourself: voxout runs no program that comes with a folder. Name yours with --set "
                f"{name}='...' or in a file after --config; it may be the same one if you trust it."
            )


def with_commands_of(config: Config, fitted: Config) -> Config:
    """The settings of a model with the user's commands: the same program may lie elsewhere, or be called otherwise."""
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
