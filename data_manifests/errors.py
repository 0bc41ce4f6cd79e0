"""The two kinds of error a user can cause.

Each message says the thing, what was found, what was expected and what to do. They are caught in two places only:
the engine (one subject fails, the cohort goes on) and the command line (one plain message, exit code 2).
Anything else that is raised is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(Exception):
    """A mistake the user can mend: wrong path, wrong setting, unusable input.

    Parameters
    ----------
    problems : str or sequence of str
        One clear sentence, or all the sentences when several things are wrong at once.
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
