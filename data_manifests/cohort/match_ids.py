"""Which file of a folder is whose: anybody's maps and masks, matched by the subject's id."""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, private
from ..user_paths import at_home, reach
from .folder_search import Search, search

_SUFFIXES = (".nii.gz", ".nii", ".mgz")
_BIDS = re.compile(r"(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(?=[_.])")
_LABEL = re.compile(r"(sub|ses)-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?")


@dataclass(frozen=True)
class IdFile:
    """A file and the id that its name holds, as it stands there."""

    name: str
    path: Path


def identity(name: str) -> str:
    """What two names of one subject have in common: no ``sub-``, and one way to write an accent."""
    return unicodedata.normalize("NFC", name).removeprefix("sub-")


def files_by_id(where: str, option: str) -> dict[str, IdFile]:
    """The images of a folder by the identity of their subject.

    Parameters
    ----------
    where : str
        A folder, searched with all folders below it: a name that begins as BIDS names do (``sub-01_...``,
        ``sub-01_ses-2_...``) holds its id there, any other name up to its suffix (.nii, .nii.gz, .mgz) is an id. Or
        a path in which ``{id}`` stands for the id and ``*`` for anything: ``maps/{id}/anat/{id}_*_map.nii.gz``.
        Linked folders are searched too. A link that leads nowhere is a file of its id, and so is a folder that
        cannot be searched where it tells whose it is: reading it fails, for that subject alone.
    option : str
        What the user calls it, for the sentences: ``--maps``.

    Raises
    ------
    UserError
        No such folder; no image there; two files of one id; a folder that cannot be searched and could be anybody's.
    """
    pattern: tuple[str, ...] = ()
    try:
        root = at_home(where)
    except UserError as error:
        raise UserError(f"{option} {error}") from error
    if "{id}" in where:
        parts = root.parts
        fixed = next(i for i, part in enumerate(parts) if "{id}" in part or "*" in part)
        root, pattern = Path(*parts[:fixed]), parts[fixed:]
    elif "*" in where:
        raise UserError(
            f"{option} {private(where)}: has * and no {{id}}, expected to see where the id stands. "
            "Write it as in 'maps/{id}_*.nii.gz'."
        )
    if not os.path.isdir(root):
        is_file = os.path.isfile(root)
        if not is_file and not _is_absent(root):
            reach(root, f"a folder ({option})")
        what = "is a file" if is_file else "no such folder"
        raise UserError(
            f"{option} {private(where)}: {what}, expected a folder, or a path with {{id}} in it. Check the path."
        )
    content = search(root, depth=len(pattern) or None)
    whole = _regex(pattern) if pattern else None
    found: dict[str, list[IdFile]] = {}
    for path in content.files:
        name = _id_of(path, root, whole)
        if name and not path.name.startswith("."):
            found.setdefault(identity(name), []).append(IdFile(unicodedata.normalize("NFC", name), path))
    for name, path in _closed(content, root, pattern, f"{option} {private(where)}"):
        found.setdefault(identity(name), [IdFile(unicodedata.normalize("NFC", name), path)])
    if not found:
        wanted = "a file that fits" if pattern else f"an image ({', '.join(_SUFFIXES)})"
        raise UserError(f"{option} {private(where)}: found no file, expected {wanted}. Check the path.")
    twice = {name: files for name, files in found.items() if len(files) > 1}
    if twice:
        several = list(twice.values())
        more = [f"{option} {private(where)}: and so for {len(several) - 3} more."] if len(several) > 3 else []
        raise UserError(
            [
                f"{option} {private(where)}: {private(files[0].name)} matches {len(files)} files "
                f"({' and '.join(private(file.path.relative_to(root)) for file in files[:2])}), expected one. "
                "Say which by a path with {id} in it and no * beside it, as in 'maps/{id}_map.nii.gz'."
                for files in several[:3]
            ]
            + more
        )
    return {name: files[0] for name, files in found.items()}


def _is_absent(path: Path) -> bool:
    """Whether nothing is there; not where that cannot be known, nor where a link leads nowhere."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _id_of(path: Path, root: Path, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is not None:
        match = pattern.fullmatch(unicodedata.normalize("NFC", path.relative_to(root).as_posix()))
        return match["id"] if match else None
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        return None
    bids = _BIDS.match(path.name)
    return bids[1] if bids else path.name[: -len(suffix)]


def _closed(content: Search, root: Path, pattern: tuple[str, ...], option: str) -> Iterator[tuple[str, Path]]:
    """What could not be searched, with the id that its path tells."""
    problems = []
    for path, why in sorted(content.closed.items()):
        parts = path.relative_to(root).parts
        if pattern:
            begin = _regex(pattern[: len(parts)]).fullmatch(unicodedata.normalize("NFC", "/".join(parts)))
            if begin is None:
                continue
            name = begin.groupdict().get("id")
        else:
            labels = [part for part in parts if _LABEL.fullmatch(part)]
            name = "_".join(labels) if labels and labels[0].startswith("sub-") else None
        if name:
            yield name, path
        else:
            problems.append(
                f"{option}: {private(path.relative_to(root))} cannot be searched ({why}), expected a folder or a "
                "file: whose files are missing is not known. Make it readable, or take it away."
            )
    if problems:
        raise UserError(problems)


def _regex(pattern: tuple[str, ...]) -> re.Pattern[str]:
    text = re.escape(unicodedata.normalize("NFC", "/".join(pattern))).replace(r"\*", "[^/]*")
    first, *others = text.split(r"\{id\}")
    return re.compile(first + ("(?P<id>[^/]+)" + "(?P=id)".join(others) if others else ""))
