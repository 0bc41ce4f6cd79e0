"""Where the scans of a folder come from: series and files, in a folder that only its owner can read.

The results of a subject can be sent back as DICOM only with its original images, which hold the patient's name. Neither
the name nor any other tag is kept here, but the place of the study may contain one.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.open_file import file_hash
from ...data_manifests.typed_json import Content, read_json

_FOLDER = "source"


class Source(Content):
    """Where the scans of one subject come from.

    Attributes
    ----------
    study : str
        Folder that was read.
    t1w, flair : str or None
        UIDs of the series.
    files : mapping from path, relative to the folder of the scans, to SHA-256
        Of what was written.
    """

    format: Literal["voxout dicom source 1"] = "voxout dicom source 1"
    study: str
    t1w: str
    flair: str | None = None
    files: dict[str, str]


def write_source(folder: Path, key: str, source: Source) -> None:
    """Write the source of a subject."""
    path = _path(folder, key)
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o700)
    with atomic_write(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(source.model_dump_json(indent=1))


def read_source(folder: Path, key: str) -> Source | None:
    """Return the source of a subject; None if it is not known.

    Raises
    ------
    UserError
        The file is damaged.
    """
    path = _path(folder, key)
    if not path.exists():
        return None
    return read_json(path, Source, "the source of a scan", "Run `voxout dicom in` again, into a new folder.")


def require_own_files(folder: Path, key: str, t1w: str, names: Iterable[str]) -> None:
    """Refuse to replace files that voxout did not write, or that are of another series.

    Raises
    ------
    UserError
    """
    source = read_source(folder, key)
    if source is not None and source.t1w != t1w:
        raise UserError(
            f"{key}: the folder has the scan of another series under this id, expected the same series. Choose another "
            "id with --subject or --session, or another folder."
        )
    owned = source.files if source else {}
    for name in names:
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and owned.get(name) == file_hash(path)):
            raise UserError(
                f"{private(folder)}: holds {name}, which voxout did not write or which was changed, expected no such "
                "file. Move it away, or choose another folder."
            )


def forget_sources(folder: Path, keys: Collection[str]) -> None:
    """Delete the sources of some subjects and their converted scans, if they were not changed."""
    for key in keys:
        if (source := read_source(folder, key)) is None:
            continue
        for name, content in source.files.items():
            path = folder / name
            if path.is_file() and not path.is_symlink() and file_hash(path) == content:
                path.unlink()
                _remove_empty(path.parent, folder)
        _path(folder, key).unlink()
    _remove_empty(folder / _FOLDER, folder.parent)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _path(folder: Path, key: str) -> Path:
    return folder / _FOLDER / f"{key}.json"
