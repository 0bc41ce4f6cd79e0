"""Sentences about settings that pydantic refused, with the name that was probably meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from ...data_manifests.settings import Section


def sentence_of(root: type[Section], problem: Any) -> str:
    """Return a pydantic problem of the configuration `root` as a sentence for the user."""
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return _of_unknown_name(root, location, problem["input"])
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        # Settings that contradict each other: the message names them.
        return f"{name}: {message}." if name else f"{message}."
    return f"Setting {name} is {problem['input']!r}, expected {message.removeprefix('a valid ')}."


def section_at(root: type[Section], location: Sequence[str]) -> type[Section] | None:
    """Return the section at a location below `root`; None if there is none."""
    section = root
    for part in location:
        inner = _inner_sections(section).get(part)
        if inner is None:
            return None
        section = inner
    return section


def _of_unknown_name(root: type[Section], location: Sequence[str], value: Any) -> str:
    name, last = ".".join(location), location[-1]
    section = section_at(root, location[:-1]) or root
    if last in section.removed:
        return (
            f"{name} is no longer a setting: found {value!r}, expected {section.removed[last]!r}, which is always "
            "used. Remove it."
        )
    if meant := _meant(root, section, location):
        return f"Setting {name} is not known. Did you mean {' or '.join(meant[:3])}?"
    known = list(section.model_fields)
    return f"Setting {name} is not known. Use one of: {', '.join(known)}."


def _meant(root: type[Section], section: type[Section], location: Sequence[str]) -> list[str]:
    """Return the full names that an unknown one may stand for: without its section or unit, or misspelt."""
    last, leaves = location[-1], {name: name.rpartition(".")[-1] for name in _names(root)}
    if same := [name for name, leaf in leaves.items() if leaf == last or leaf.startswith(f"{last}_")]:
        return same
    if near := difflib.get_close_matches(last, list(section.model_fields), n=1, cutoff=0.5):
        return [".".join([*location[:-1], near[0]])]
    near = difflib.get_close_matches(last, leaves.values(), n=1, cutoff=0.75)
    return [name for name, leaf in leaves.items() if leaf in near]


def _names(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the full names of all settings and sections."""
    inner = _inner_sections(section)
    for name in section.model_fields:
        yield prefix + name
        if name in inner:
            yield from _names(inner[name], f"{prefix}{name}.")


def _inner_sections(section: type[Section]) -> dict[str, type[Section]]:
    kinds = {name: field.annotation for name, field in section.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
