"""The two kinds of error a user can cause, and how a sentence names a file.

Each message says the thing, what was found, what was expected and what to do. They are caught in two places only:
the engine (one subject fails, the cohort goes on) and the command line (one plain message, exit code 2).
Anything else that is raised is a bug and keeps its traceback.

The name of a file or folder may be that of a person. A sentence therefore holds it between two marks (`private`), and
is written in one of two ways: `for_terminal`, where the user has to find the file, and `without_names`, for all that is
kept on disk. No name is ever searched for: what stands between the marks is left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Unicode's "first strong isolate" and "pop directional isolate": invisible, and made for names inside of sentences.
# Between them, what the name is of may come first, with an "invisible separator" behind it.
_OPEN, _ROLE, _CLOSE = "\u2068", "\u2063", "\u2069"
_PRIVATE = re.compile(f"{_OPEN}(?:([^{_OPEN}{_ROLE}{_CLOSE}]*){_ROLE})?([^{_OPEN}{_ROLE}{_CLOSE}]*){_CLOSE}")
_SOME_FILE = "the file"
_HALF = re.compile(f"{_OPEN}.*|^.*{_CLOSE}", re.DOTALL)


def private(name: str | Path, role: str = _SOME_FILE) -> str:
    """A name or path as a sentence holds it: between the marks, without anything that is not printable.

    `role` stands in its place where the sentence is kept, unless a better one is known there.
    Marks inside a name, line breaks and control sequences of a terminal become question marks; bytes that are no UTF-8
    are written out.
    """
    return f"{_OPEN}{'' if role == _SOME_FILE else role + _ROLE}{printable(str(name))}{_CLOSE}"


def printable(text: str) -> str:
    """A question mark for each character that a terminal would not show; bytes that are no UTF-8 as ``\\udcff``."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def for_terminal(text: str) -> str:
    """A sentence for the eyes of the user, with its names."""
    return _PRIVATE.sub(r"\2", text).replace(_OPEN, "").replace(_CLOSE, "")


def without_names(text: str, roles: Mapping[str, str] = MappingProxyType({})) -> str:
    """A sentence as it may be kept: each name gives way to its role.

    Parameters
    ----------
    text : str
    roles : mapping from a name, `printable`, to what stands in its place
    """
    whole = _PRIVATE.sub(lambda match: roles.get(match[2], match[1] or _SOME_FILE), text)
    # A mark without its other half: the sentence was cut, and where the name ends is unknown.
    return _HALF.sub(_SOME_FILE, whole) if _OPEN in whole or _CLOSE in whole else whole


def kept(value: Any) -> Any:
    """JSON values without the names in their strings."""
    if isinstance(value, str):
        return without_names(value)
    if isinstance(value, Mapping):
        return {kept(key): kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [kept(item) for item in value]
    return value


class UserError(Exception):
    """A mistake the user can mend: wrong path, wrong setting, unusable input.

    Parameters
    ----------
    problems : str or sequence of str
        One clear sentence, or all the sentences when several things are wrong at once. Names of files in them are
        `private`, and stay so in ``problems`` and ``str``.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):
        # Rebuilt from its sentences: the error has to cross process borders whole.
        return type(self), (self.problems,)


class SubjectError(UserError):
    """One subject cannot go on; the rest of the cohort does."""


class MachineError(UserError):
    """The machine cannot go on, whatever the subject: no room left, no more files may be opened."""


@dataclass(frozen=True)
class Failure:
    """A subject that a stage had to give up, and why.

    Attributes
    ----------
    key : str
        The subject, as in `SubjectRecord.key`.
    stage : str
    reason : str
        A sentence for the user.
    """

    key: str
    stage: str
    reason: str


def some_of(names: Iterable[str]) -> str:
    """A list for a reader: the first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
