"""Reading and validation of JSON files."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError, private
from .open_file import read_regular

LARGEST_BYTES = 256 * 2**20
"""Largest accepted JSON file. A record of 100,000 files has about a tenth of this size."""


class Content(BaseModel):
    """Content of a JSON file: types are not converted, numbers must be finite, unknown names are errors."""

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
        Expected content, for error messages, such as "a description of channels".
    advice : str
        What the user should do if the file is invalid, as a sentence.

    Raises
    ------
    UserError
        Missing, not JSON, or not valid as `kind`. The message contains the first problem.
    """
    try:
        text = read_regular(path, LARGEST_BYTES)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{private(path)}: not readable ({found}), expected {what}. {advice}") from error
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{private(path)}: {_first_problem(error)}, expected {what}. {advice}") from error


def load_json(path: Path) -> Any:
    """Return the values of a JSON file without validation.

    Raises
    ------
    ValueError
        Not JSON, nested too deeply, or larger than `LARGEST_BYTES`.
    OSError
    """
    try:
        return json.loads(read_regular(path, LARGEST_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _first_problem(error: ValidationError) -> str:
    """Describe the first problem. Text values are left out: they may be long or contain a participant's name."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if isinstance(problem["input"], (bool, int, float)):
        place += f" is {problem['input']}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('invalid JSON: ')})"
    return f"{place}: {message}" if place else message
