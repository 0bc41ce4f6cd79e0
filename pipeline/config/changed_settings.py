"""Settings that a caller from Python changes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any] | Sequence[str]
"""Changed settings: ``{"models.detector.nu": 0.05}``, or as on the command line: ``["models.detector.nu=0.05"]``."""


def as_overrides(settings: Settings) -> tuple[str, ...]:
    """Return changed settings as on the command line: ``NAME=VALUE``."""
    if isinstance(settings, Mapping):
        return tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    return tuple(settings)
