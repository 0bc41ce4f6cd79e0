"""All files below a folder, behind links too, and what could not be searched."""

import os
import re
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(
    r"\.(nii|gz|mgz|mgh|img|hdr|mha|mhd|nrrd|mif|gii|json|tsv|csv|txt|md|rst|html|svg|png|jpg|pdf|bval|bvec|yml|yaml|log"
    r"|jsonl|mat|h5|x5|xfm|npy|npz|xlsx|zip|tar|tgz|bz2|py|sh|m)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Search:
    """What a folder holds.

    Attributes
    ----------
    files : tuple of Path
        Sorted. Links that lead nowhere are among them where they are named as a file: reading them fails, which is
        for the reader to say.
    closed : mapping from Path to str
        Folders, and links that may have led to folders, that could not be searched, and why.
    """

    files: tuple[Path, ...]
    closed: dict[Path, str]


def search(root: Path, *, depth: int | None = None, skip: Callable[[Path], bool] = lambda folder: False) -> Search:
    """Find every file below a folder.

    Linked folders are searched. Without a `depth` each folder is searched once, under its own name rather than a
    link's, so that loops end; with it, under each of its names.

    Parameters
    ----------
    root : Path
    depth : int, optional
        How many names a file's path has below the root at most.
    skip : callable
        Folders below the root for which this is true are left out. So are those whose name begins with a dot.
    """
    files: list[Path] = []
    closed: dict[Path, str] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            state = folder.stat()
            if depth is None and (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            names = sorted(os.listdir(folder))
        except OSError as error:
            closed[folder] = error.strerror or "not readable"
            continue
        for name in names:
            path = folder / name
            try:
                mode = path.stat().st_mode
            except OSError as error:
                # A link that leads nowhere, or into a loop: a file by its name or target, or perhaps a folder.
                if _names_file(path):
                    files.append(path)
                elif not name.startswith("."):
                    missing = isinstance(error, FileNotFoundError)
                    closed[path] = "a link that leads nowhere" if missing else error.strerror or "not readable"
                continue
            if stat.S_ISREG(mode):
                files.append(path)
            elif stat.S_ISDIR(mode) and not name.startswith(".") and not skip(path):
                if depth is not None and len(path.relative_to(root).parts) >= depth:
                    continue
                (links if path.is_symlink() else folders).append(path)
    return Search(tuple(sorted(files)), closed)


def _names_file(path: Path) -> bool:
    """Whether a link that leads nowhere was one to a file; git-annex keeps nothing else."""
    if _FILE.fullmatch(path.suffix):
        return True
    try:
        return "annex/objects/" in os.readlink(path)
    except OSError:
        return False
