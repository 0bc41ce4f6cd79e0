"""Small parts of a fitted model, each one safetensors file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import UserError


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], **about: str) -> Path:
    """Write named arrays, and words about them, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(canonical(save(dict(tensors), about or None)))
    return path


def canonical(content: bytes) -> bytes:
    """A safetensors file with its words in alphabetical order: safetensors itself shuffles them at every start."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    if words := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(words.items()))} | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # keeps the numbers aligned
    return len(text).to_bytes(8, "little") + text + content[begin:]


@contextmanager
def opened_tensors(path: Path, what: str) -> Iterator[Any]:
    """What `write_tensors` wrote, as safetensors opens it.

    Raises
    ------
    UserError
        The file, or something that is looked for in it, is missing or damaged; the sentence says that it holds no
        `what`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: holds no {what}. Run the stage fit again.") from error
