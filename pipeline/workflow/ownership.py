"""What belongs to voxout in an output folder.

A file belongs to voxout if a record lists it with its current size and hash; an output folder, if it holds a record.
Any other file in an output folder is never deleted or overwritten: where it is in the way, it is moved to the folder
``set-aside``, or voxout stops and says so.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import PARTS, OutputFolder
from ...data_manifests.errors import UserError, private, some_of
from ...data_manifests.user_paths import real
from .folders import make_folder
from .records import StageRecord, evidence

EVALUATE = "evaluate"
"""Name of the record in a folder of `voxout evaluate`; the folder of a run has none of this name."""
BUILDING = ".building"
SET_ASIDE = "set-aside"
OWN_NAMES = frozenset(Path(name).parts[0] for name in PARTS.values()) | {
    "config.yaml",
    "dicom-in",
    "failures.csv",
    "requeue.sbatch",
    "status.csv",
    "log.jsonl",
    "records",
    "rivals",
    ".lock",
    ".scratch",
    BUILDING,
    SET_ASIDE,
}
"""Names that voxout writes at the top of an output folder."""
_RUN = "run"
"""Name of the record of an output folder. It is written before anything else, and lists the files of `write_own`."""


def write_own(out: OutputFolder, path: Path, content: bytes | None) -> str | None:
    """Write a file at the top of an output folder, such as ``failures.csv``, and list it in the folder's record.

    Parameters
    ----------
    out : OutputFolder
    path : Path
    content : bytes or None
        None: delete the file.

    Returns
    -------
    str or None
        Where an earlier file was moved to, if voxout did not write it or it was changed since.
    """
    root, name = out.root, str(path.relative_to(out.root))
    before = StageRecord.read(out.record(_RUN)) or StageRecord(_RUN, {}, {})

    def move_foreign() -> str | None:
        return set_aside(root, name) if os.path.lexists(path) and not before.owns(root, name) else None

    if content is None:
        moved = move_foreign()
        path.unlink(missing_ok=True)
    elif path.is_file() and not path.is_symlink() and path.read_bytes() == content:
        moved = None
    else:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            moved = move_foreign()
    found = evidence(root, [path] if content is not None else [])
    others = {other: size for other, size in before.outputs.items() if other != name}
    outputs = dict(sorted((others | found.sizes).items()))
    record = replace(before, outputs=outputs, hashes={n: {**before.hashes, **found.hashes}[n] for n in outputs})
    if record != before:
        record.write(out.record(_RUN))
    return moved


def claim(out: Path) -> None:
    """Create an output folder and its record, before anything else is written in it.

    Raises
    ------
    UserError
        The folder cannot be used (see `make_folder`, `require_own_place`).
    """
    require_own_place(out)
    make_folder(out)
    record = OutputFolder(out).record(_RUN)
    require_inside(out, str(record.relative_to(out)))
    if StageRecord.read(record) is None:
        StageRecord(_RUN, {}, {}).write(record)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Claim an output folder for a block (see `claim`); a block that fails before it writes leaves nothing behind."""
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    record = OutputFolder(out).record(_RUN)
    before = StageRecord.read(record)
    claim(out)
    try:
        yield
    except BaseException:
        if before is None and [path for path in out.rglob("*") if not path.is_dir()] == [record]:
            record.unlink()
            for folder in (record.parent, *made):
                with suppress(OSError):
                    folder.rmdir()
        raise


def require_own_place(out: Path) -> None:
    """Refuse an output folder with files that voxout did not write in places that it writes to.

    Raises
    ------
    UserError
        The folder holds files of the same names and no record of a run, or was made by `voxout evaluate`.
    """
    if StageRecord.read(OutputFolder(out).record(EVALUATE)) is not None:
        raise UserError(
            f"{private(out, 'the output folder')}: was made by `voxout evaluate`, expected a new folder or one of a "
            "run. Choose another output folder."
        )
    if not out.is_dir() or any(StageRecord.read(file) for file in (out / "records").glob("*.json")):
        return
    found = sorted(name for name in OWN_NAMES if os.path.lexists(out / name) and not _holds_nothing(out / name))
    if found:
        raise UserError(
            f"{private(out, 'the output folder')}: holds {some_of(found)} and no record of voxout, expected an empty "
            "folder or one of an earlier run. Choose another output folder."
        )


def require_apart(out: Path, inputs: Mapping[str, Path], dataset: Path | None = None) -> None:
    """Refuse inputs inside the output folder, and an output folder inside a BIDS dataset.

    A folder in ``derivatives`` of the dataset is accepted.

    Parameters
    ----------
    out : Path
    inputs : mapping from description, as ``"sub-01, t1w"``, to path
    dataset : Path, optional
        Root of the BIDS dataset that is read.

    Raises
    ------
    UserError
    """
    root = real(out)
    inside = [what for what, path in inputs.items() if real(path).is_relative_to(root)]
    if inside:
        raise UserError(
            f"{private(out, 'the output folder')}: holds inputs ({some_of(inside)}), expected a separate "
            "folder. Choose another output folder."
        )
    if dataset is not None and root.is_relative_to(real(dataset)):
        within = root.relative_to(real(dataset)).parts
        if len(within) < 2 or within[0] != "derivatives" or within[1].startswith("sub-"):
            raise UserError(
                f"{private(out, 'the output folder')}: lies inside the dataset that is read, expected a separate "
                f"folder such as {private(dataset / 'derivatives' / 'voxout')}. Choose another output folder."
            )


def require_inside(root: Path, name: str) -> None:
    """Refuse a path with a link that leads out of the output folder."""
    if not real((root / name).parent).is_relative_to(real(root)):
        raise UserError(
            f"{private(root, 'the output folder')}: a parent folder of {name} is a link that leads out of it, "
            "expected a folder. Replace the link by a folder, or choose another output folder."
        )


def set_aside(root: Path, name: str) -> str:
    """Move a file to a free name in the folder ``set-aside``; return its new path, relative to the root."""
    path = root / SET_ASIDE / name
    require_inside(root, f"{SET_ASIDE}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{number}-{path.name}")
    os.replace(root / name, free)
    return str(free.relative_to(root))


def is_empty(folder: Path) -> bool:
    """Whether a path is a folder, not a link, that holds nothing."""
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def require_new_folder(folder: Path) -> None:
    """Require that a folder does not exist, or holds nothing.

    Raises
    ------
    UserError
        It holds something, or is a link.
    """
    if folder.is_symlink() or (folder.exists() and not is_empty(folder)):
        raise UserError(
            f"{private(folder, 'the folder')}: exists and is not empty, expected a new folder. Choose another one."
        )


def _holds_nothing(path: Path) -> bool:
    """Whether a path is an empty folder or an empty file, such as a lock."""
    return is_empty(path) or (path.is_file() and not path.is_symlink() and path.stat().st_size == 0)
