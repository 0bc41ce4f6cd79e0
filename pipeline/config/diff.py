"""Settings as flat names, and what differs between two runs, in words."""

from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between the inputs of two runs of a stage, in words."""
    named = []
    for name in sorted(set(before) | set(now)):
        if before.get(name) == now.get(name):
            continue
        if name.startswith("settings."):
            setting = name.removeprefix("settings.")
            named.append(f"{setting} was {before.get(name)}, is now {now.get(name)}")
        elif name not in before:
            named.append(f"{name} is new")
        elif name not in now:
            named.append(f"{name} is gone")
        else:
            named.append(f"{name} was made again or changed")
    return named


def flat_settings(values: Mapping[str, Any], prefix: str = "settings") -> dict[str, Any]:
    """Nested settings as ``{"settings.models.detector.nu": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}.{name}")
        else:
            flat[f"{prefix}.{name}"] = value
    return flat
