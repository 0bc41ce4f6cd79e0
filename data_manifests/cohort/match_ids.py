"""Matching of map and mask files to subjects by the id in the file name."""

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
    """File and the id in its name, as written there."""

    name: str
    path: Path


def identity(name: str) -> str:
    """Return the normalised id: without ``sub-``, with accents in composed form."""
    return unicodedata.normalize("NFC", name).removeprefix("sub-")


def files_by_id(where: str, option: str) -> dict[str, IdFile]:
    """Find the images of a folder, by the identity of their subject.

    Parameters
    ----------
    where : str
        Either a folder, which is searched recursively: the id is the beginning of a BIDS name (``sub-01_...``,
        ``sub-01_ses-2_...``) or any other file name without its suffix (.nii, .nii.gz, .mgz). Or a path with ``{id}``
        in place of the id and ``*`` for any text: ``maps/{id}/anat/{id}_*_map.nii.gz``. Linked folders are searched
        too. A broken link counts as the file of its id, and so does a folder that cannot be searched if its path
        contains an id: reading it fails later, for that subject only.
    option : str
        Name of the option for error messages: ``--maps``.

    Raises
    ------
    UserError
        No such folder; no image in it; two files of one id; a folder that cannot be searched and has no id in its path.
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
            f"{option} {private(where)}: has * but no {{id}}, expected {{id}} in place of the subject id. "
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
    full_pattern = _regex(pattern) if pattern else None
    found: dict[str, list[IdFile]] = {}
    for path in content.files:
        name = _id_of(path, root, full_pattern)
        if name and not path.name.startswith("."):
            found.setdefault(identity(name), []).append(IdFile(unicodedata.normalize("NFC", name), path))
    for name, path in _unsearched_ids(content, root, pattern, f"{option} {private(where)}"):
        found.setdefault(identity(name), [IdFile(unicodedata.normalize("NFC", name), path)])
    if not found:
        wanted = "a matching file" if pattern else f"an image ({', '.join(_SUFFIXES)})"
        raise UserError(f"{option} {private(where)}: found no file, expected {wanted}. Check the path.")
    several = [files for files in found.values() if len(files) > 1]
    if several:
        more = [f"{option} {private(where)}: the same for {len(several) - 3} more."] if len(several) > 3 else []
        raise UserError(
            [
                f"{option} {private(where)}: {private(files[0].name)} matches {len(files)} files "
                f"({' and '.join(private(file.path.relative_to(root)) for file in files[:2])}), expected one. "
                "Select one by a path with {id} and no * next to it, as in 'maps/{id}_map.nii.gz'."
                for files in several[:3]
            ]
            + more
        )
    return {name: files[0] for name, files in found.items()}


def _is_absent(path: Path) -> bool:
    """Whether a path does not exist; False for broken links and where this cannot be determined."""
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


def _unsearched_ids(content: Search, root: Path, pattern: tuple[str, ...], option: str) -> Iterator[tuple[str, Path]]:
    """Yield the id and path of each folder that could not be searched; an error if a path contains no id."""
    problems = []
    for path, why in sorted(content.unsearched.items()):
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
                "file: it is unknown whose files it contains. Make it readable, or remove it."
            )
    if problems:
        raise UserError(problems)


def _regex(pattern: tuple[str, ...]) -> re.Pattern[str]:
    text = re.escape(unicodedata.normalize("NFC", "/".join(pattern))).replace(r"\*", "[^/]*")
    first, *others = text.split(r"\{id\}")
    return re.compile(first + ("(?P<id>[^/]+)" + "(?P=id)".join(others) if others else ""))
