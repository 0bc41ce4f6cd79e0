"""JSON files, read as what they ought to hold or refused in a sentence."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError, private
from .open_file import read_regular

LARGEST_BYTES = 256 * 2**20
"""Of a JSON file. A record of a hundred thousand files has a tenth of it."""


class Content(BaseModel):
    """What a JSON file holds: types are not converted, numbers are finite, and a name that is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=BaseModel)


def read_json(path: Path, kind: type[Kind], what: str, advice: str) -> Kind:
    """Read a JSON file.

    Parameters
    ----------
    path : Path
    kind : type
        A `Content` with a field for each name in the file.
    what : str
        What the file is, as in "a description of channels".
    advice : str
        What to do where it is not, in a sentence.

    Raises
    ------
    UserError
        Missing, not JSON, or something else than `kind`. The first thing that is wrong is named.
    """
    try:
        text = read_regular(path, LARGEST_BYTES)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{private(path)}: not readable ({found}), expected {what}. {advice}") from error
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{private(path)}: {_found(error)}, expected {what}. {advice}") from error


def load_json(path: Path) -> Any:
    """The values of a JSON file that nothing is known of yet.

    Raises
    ------
    ValueError
        No JSON, nested without end, or larger than any that voxout writes.
    OSError
    """
    try:
        return json.loads(read_regular(path, LARGEST_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _found(error: ValidationError) -> str:
    """What is wrong first, in words; of its values only numbers, since text may fill a page or name a person."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if isinstance(problem["input"], (bool, int, float)):
        place += f" is {problem['input']}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('invalid JSON: ')})"
    return f"{place}: {message}" if place else message
