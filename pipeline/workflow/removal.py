"""Deletion of outputs: only files that a record lists, and what interrupted calls built."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from .ownership import BUILDING, is_empty, require_inside, set_aside
from .records import StageRecord


def remove_recorded(out: OutputFolder, record: StageRecord, *, keep: frozenset[str] = frozenset()) -> list[str]:
    """Delete the files that a record lists, and folders that become empty.

    Parameters
    ----------
    out : OutputFolder
    record : StageRecord
    keep : frozenset of str
        Names of files that are not deleted.

    Returns
    -------
    list of str
        Files that were changed since: they are moved to the folder ``set-aside``.
    """
    root, moved = out.root, []
    for name in record.outputs:
        path = root / name
        if name in keep or not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
            continue
        require_inside(root, name)
        if record.owns(root, name):
            path.unlink()
        else:
            set_aside(root, name)
            moved.append(name)
        _remove_empty(path.parent, root)
    return moved


def remove_with_record(out: OutputFolder, path: Path) -> list[str]:
    """Delete the record at a path with the files that it lists, and folders that become empty.

    Returns
    -------
    list of str
        See `remove_recorded`. Empty if there is no record.
    """
    record = StageRecord.read(path)
    if record is None:
        return []
    moved = remove_recorded(out, record)
    path.unlink()
    _remove_empty(path.parent, out.root)
    return moved


def remove_unfinished(out: OutputFolder, key: str) -> None:
    """Delete what interrupted calls built of one subject."""
    building = out.root / BUILDING
    if building.is_symlink():
        return
    for path in sorted(building.rglob("*")):
        if path.is_dir() and not path.is_symlink() and path.name.endswith(f"-{key}"):
            shutil.rmtree(path)
        elif path.stem == key and (path.is_symlink() or path.is_file()):
            path.unlink()
    remove_building_folder(out)


def remove_building_folder(out: OutputFolder) -> None:
    """Delete the folder in which outputs are built, if it is empty."""
    with suppress(OSError):
        (out.root / BUILDING).rmdir()


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root) and is_empty(folder):
        folder.rmdir()
        folder = folder.parent
