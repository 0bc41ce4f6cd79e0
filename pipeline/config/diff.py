"""Flat names of settings, and descriptions of what differs between two runs."""

from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each difference between the inputs of two runs of a stage, as a short text."""
    described = []
    for name in sorted(set(before) | set(now)):
        if before.get(name) == now.get(name):
            continue
        if name.startswith("settings."):
            setting = name.removeprefix("settings.")
            what = f"is now {now[name]}" if name in now else "is no longer a setting"
            described.append(f"{setting} was {before.get(name)}, {what}")
        elif name not in before:
            described.append(f"{name} is new")
        elif name not in now:
            described.append(f"{name} is not among the inputs any more")
        else:
            described.append(f"{name} was recomputed or changed")
    return described


def flat_settings(values: Mapping[str, Any], prefix: str = "settings") -> dict[str, Any]:
    """Flatten nested settings, as ``{"settings.models.detector.nu": 0.1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}.{name}")
        else:
            flat[f"{prefix}.{name}"] = value
    return flat
