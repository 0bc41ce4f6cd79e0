"""Errors caused by the user, and marking of private file names in messages.

Each message states the object, what was found, what was expected and what to do. The errors are caught in two places
only: the engine (one subject fails, the cohort continues) and the command line (one message, exit code 2). Any other
exception is a bug and keeps its traceback.

File and folder names may contain a participant's name. Messages therefore enclose them in invisible marks (`private`)
and are written in one of two ways: `for_terminal` keeps the names, so that the user finds the file; `without_names`
removes them from everything that is stored on disk. Removal relies on the marks, not on a search for names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Unicode's "first strong isolate" and "pop directional isolate" are invisible and made for names inside sentences.
# Between them, an optional role comes first, followed by an "invisible separator".
_OPEN, _ROLE, _CLOSE = "\u2068", "\u2063", "\u2069"
_PRIVATE = re.compile(f"{_OPEN}(?:([^{_OPEN}{_ROLE}{_CLOSE}]*){_ROLE})?([^{_OPEN}{_ROLE}{_CLOSE}]*){_CLOSE}")
_SOME_FILE = "the file"
_UNPAIRED = re.compile(f"{_OPEN}.*|^.*{_CLOSE}", re.DOTALL)


def private(name: str | Path, role: str = _SOME_FILE) -> str:
    """Return a name or path enclosed in the marks for private names, with printable characters only.

    In stored messages, `role` replaces the name unless `without_names` is given a better role. Marks inside the name,
    line breaks and terminal control sequences become question marks; bytes that are not UTF-8 are escaped.
    """
    return f"{_OPEN}{'' if role == _SOME_FILE else role + _ROLE}{printable(str(name))}{_CLOSE}"


def printable(text: str) -> str:
    r"""Replace non-printable characters by question marks and escape bytes that are not UTF-8 as ``\udcff``."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def for_terminal(text: str) -> str:
    """Return a message for the terminal: names are kept, marks are removed."""
    return _PRIVATE.sub(r"\2", text).replace(_OPEN, "").replace(_CLOSE, "")


def without_names(text: str, roles: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a message for storage on disk: each private name is replaced by its role.

    Parameters
    ----------
    text : str
    roles : mapping from str to str
        Replacements of names, as returned by `printable`. They take precedence over the role given to `private`.
    """
    anonymous = _PRIVATE.sub(lambda match: roles.get(match[2], match[1] or _SOME_FILE), text)
    # An unpaired mark: the message was truncated, and the end of the name is unknown.
    return _UNPAIRED.sub(_SOME_FILE, anonymous) if _OPEN in anonymous or _CLOSE in anonymous else anonymous


def kept(value: Any) -> Any:
    """Return JSON values with private names removed from all strings (see `without_names`)."""
    if isinstance(value, str):
        return without_names(value)
    if isinstance(value, Mapping):
        return {kept(key): kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [kept(item) for item in value]
    return value


class UserError(Exception):
    """Error that the user can correct: wrong path, wrong setting or unusable input.

    Parameters
    ----------
    problems : str or sequence of str
        One message, or one message per problem. File names in them are marked with `private`; ``problems`` and ``str``
        keep the marks.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):
        # Rebuild from the messages, so that the error can be pickled between processes.
        return type(self), (self.problems,)


class SubjectError(UserError):
    """Error of one subject; the other subjects continue."""


class MachineError(UserError):
    """Error of the machine, independent of the subject: disk full, too many open files."""


@dataclass(frozen=True)
class Failure:
    """Subject that failed in a stage, and the reason.

    Attributes
    ----------
    key : str
        The subject, as in `SubjectRecord.key`.
    stage : str
    reason : str
        Message for the user.
    """

    key: str
    stage: str
    reason: str


def some_of(names: Iterable[str]) -> str:
    """Return the first three names as text, and the number of further names."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def merged(messages: Iterable[tuple[str, str]], n_subjects: int) -> tuple[str, ...]:
    """Merge equal messages of several subjects into one that lists the subjects.

    Parameters
    ----------
    messages : iterable of (subject key, message)
        The message may begin with the key and a colon; the key is ``""`` if it concerns no single subject.
    n_subjects : int
        Number of all subjects, for messages that concern them all.

    Examples
    --------
    >>> merged([("sub-1", "sub-1: has no FLAIR."), ("sub-2", "sub-2: has no FLAIR.")], 3)
    ('sub-1, sub-2: has no FLAIR.',)
    """
    subjects: dict[str, dict[str, None]] = {}
    for key, message in messages:
        subjects.setdefault(message.removeprefix(f"{key}: "), {})[key] = None
    return tuple(_with_subjects(list(concerned), n_subjects, text) for text, concerned in subjects.items())


def _with_subjects(keys: Sequence[str], n_subjects: int, message: str) -> str:
    if keys == [""]:
        return message
    return f"{f'all {n_subjects} subjects' if len(keys) == n_subjects > 1 else ', '.join(keys)}: {message}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in ``"1 patient"`` and ``"2 patients"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise user errors of the block without the marks around names, as a caller in Python reads them."""
    try:
        yield
    except UserError as error:
        raise type(error)([for_terminal(problem) for problem in error.problems]) from error
