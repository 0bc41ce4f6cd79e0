"""Recursive search of a folder for files, including linked folders."""

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
    """Result of `search`.

    Attributes
    ----------
    files : tuple of Path
        Sorted. Broken links are included if they are named like a file; reading them fails later.
    unsearched : mapping from Path to str
        Folders (and broken links that may be folders) that could not be searched, and the reason.
    skipped : tuple of Path
        Folders that were not searched because of `skip`.
    """

    files: tuple[Path, ...]
    unsearched: dict[Path, str]
    skipped: tuple[Path, ...] = ()


def search(root: Path, *, depth: int | None = None, skip: Callable[[Path], bool] = lambda folder: False) -> Search:
    """Find every file below a folder.

    Linked folders are searched too. Without `depth`, each folder is searched once, preferably under its own path and
    not that of a link, so that loops end. With `depth`, it is searched under each of its paths.

    Parameters
    ----------
    root : Path
    depth : int, optional
        Maximum number of path components of a file below the root.
    skip : callable
        Folders below the root for which this returns True are not searched, and neither are those whose name begins
        with a dot.
    """
    files: list[Path] = []
    unsearched: dict[Path, str] = {}
    skipped: list[Path] = []
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
            unsearched[folder] = error.strerror or "not readable"
            continue
        for name in names:
            path = folder / name
            try:
                mode = path.stat().st_mode
            except OSError as error:
                # A broken link or a loop: a file according to its name or target, or possibly a folder.
                if _links_to_file(path):
                    files.append(path)
                elif not name.startswith("."):
                    missing = isinstance(error, FileNotFoundError)
                    unsearched[path] = "a broken link" if missing else error.strerror or "not readable"
                continue
            if stat.S_ISREG(mode):
                files.append(path)
            elif stat.S_ISDIR(mode) and not name.startswith("."):
                if skip(path):
                    skipped.append(path)
                    continue
                if depth is not None and len(path.relative_to(root).parts) >= depth:
                    continue
                (links if path.is_symlink() else folders).append(path)
    return Search(tuple(sorted(files)), unsearched, tuple(sorted(skipped)))


def _links_to_file(path: Path) -> bool:
    """Whether a broken link was a link to a file; git-annex links always are."""
    if _FILE.fullmatch(path.suffix):
        return True
    try:
        return "annex/objects/" in os.readlink(path)
    except OSError:
        return False
