"""Replacement of outputs: new files are built in a separate folder and moved to their places once complete.

No other module of the pipeline deletes a file. A file belongs to voxout if a record lists it with its current size and
hash; a folder in which files are built, if it holds the record of their inputs; an output folder, if it holds a record.
Any other file in an output folder is never deleted or overwritten.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import PARTS, OutputFolder
from ...data_manifests.errors import UserError, private, some_of
from ...data_manifests.typed_json import load_json
from ...data_manifests.user_paths import real
from ..config.config import comparable
from .folders import make_folder
from .records import StageRecord, evidence, write_json

EVALUATE = "evaluate"
"""Name of the record in a folder of `voxout evaluate`; the folder of a run has none of this name."""
BUILDING = ".building"
SET_ASIDE = "set-aside"
OWN_NAMES = frozenset(Path(name).parts[0] for name in PARTS.values()) | {
    "config.yaml",
    "failures.csv",
    "log.jsonl",
    "records",
    ".lock",
    ".scratch",
    BUILDING,
    SET_ASIDE,
}
"""Names that voxout writes at the top of an output folder."""
_INPUTS, _RECORD, _DISCARDED = ".inputs.json", ".record.json", ".discarded"
_RUN = "run"
"""Name of the record of an output folder. It is written before anything else, and lists the files of `write_own`."""


@dataclass(frozen=True)
class Replacement:
    """Files of one stage, or of one subject in a stage, while they are built and moved to their places.

    Attributes
    ----------
    out : OutputFolder
        Output folder that the files belong to.
    name : str
        Unique in the output folder, as ``"fit"`` or ``"map-sub-01"``.
    parts : sequence of str
        Names in `PARTS` of what is built.
    record : Path
        Path of the record that lists the files.
    """

    out: OutputFolder
    name: str
    parts: Sequence[str]
    record: Path

    @property
    def folder(self) -> Path:
        """Folder in which the files are built."""
        return self.out.root / BUILDING / self.name

    @property
    def built(self) -> OutputFolder:
        """Output folder for the code that builds the files."""
        return self.out.built_in(self.folder, self.parts)

    def begin(
        self,
        inputs: Mapping[str, Any],
        *,
        goes_on: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda before, now: before == now,
    ) -> bool:
        """Continue with the files of an interrupted call with the same inputs, or start with an empty folder.

        Parameters
        ----------
        inputs : mapping
            All inputs of the result.
        goes_on : callable
            ``goes_on(inputs of the interrupted call, inputs)``: whether its files may be used.

        Returns
        -------
        bool
            Whether files of an interrupted call are used.

        Raises
        ------
        UserError
            Files that no record lists exist in the places of these, or in the folder in which they are built.
        """
        self.complete()
        if StageRecord.read(self.record) is None:
            self._require_free_places()
        before = _read_inputs(self.folder / _INPUTS)
        going_on = before is not None and goes_on(comparable(before), inputs)
        if not going_on:
            self.discard(self.folder)
        write_json(self.folder / _INPUTS, dict(inputs))
        return going_on

    def complete(self) -> None:
        """Move finished files to their places, if a call was killed while it did so.

        Raises
        ------
        UserError
            The folder in which files are built is a link, or another program's.
        """
        self._require_own_folder()
        if StageRecord.read(self.folder / _RECORD) is not None:
            self._put_in_place()

    def discard(self, *folders: Path) -> None:
        """Delete folders of built files."""
        for path in folders:
            if path.is_relative_to(self.folder) and path.is_dir() and not path.is_symlink():
                if (path / _INPUTS).is_file():
                    # After a kill, what is left is known to be ours, and not continued with.
                    os.replace(path / _INPUTS, path / _DISCARDED)
                for inner in sorted(path.iterdir(), key=lambda inner: inner.name == _DISCARDED):
                    if inner.is_dir() and not inner.is_symlink():
                        shutil.rmtree(inner)
                    else:
                        inner.unlink()
                path.rmdir()

    def finish(self, record: StageRecord) -> StageRecord:
        """Move the files to their places, and add them to the record and write it.

        A file that voxout wrote and that was changed since is moved to the folder ``set-aside``.

        Raises
        ------
        UserError
            A file that no record lists is in the way. The built files are kept for the next call.
        """
        found = evidence(self.folder, [self.folder])
        record = replace(record, outputs={**record.outputs, **found.sizes}, hashes={**record.hashes, **found.hashes})
        record.write(self.folder / _RECORD)
        self._put_in_place()
        return record

    def _put_in_place(self) -> None:
        new = StageRecord.read(self.folder / _RECORD)
        assert new is not None  # both callers have checked it
        old = StageRecord.read(self.record)
        root = self.out.root
        _require_inside(root, str(self.record.relative_to(root)))
        here = [name for name in new.outputs if (self.folder / name).is_file()]
        foreign = [
            name
            for name in here
            if os.path.lexists(root / name) and not _is_listed(name, old) and not new.owns(root, name)
        ]
        if foreign:
            raise UserError(
                f"{private(root, 'the output folder')}: voxout did not write {some_of(foreign)}, which is in the place "
                "of a result, expected no such file. Move it away and run the same command again; computed results "
                "are kept."
            )
        if old is not None:
            # Files without a hash, such as those of a subject, have a record of their own.
            others = frozenset(old.outputs) - frozenset(old.hashes)
            remove_recorded(self.out, old, keep=frozenset(new.outputs) - frozenset(here) | others)
        for name in here:
            _require_inside(root, name)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / name, root / name)
        new.write(self.record)
        self.discard(self.folder)

    def _require_own_folder(self) -> None:
        """Refuse a folder that this class did not make."""
        root, folder = self.out.root, self.folder
        if real(folder) != real(root) / BUILDING / self.name:
            raise UserError(
                f"{private(root, 'the output folder')}: {BUILDING} or {BUILDING}/{self.name} is a link, expected a "
                "folder. Replace the link by a folder, or choose another output folder."
            )
        is_own = _read_inputs(folder / _INPUTS) is not None or (folder / _DISCARDED).is_file()
        if os.path.lexists(folder) and not is_own:
            # A call that was killed at its start leaves the temporary file of the record.
            found = os.listdir(folder) if folder.is_dir() else [self.name]
            if any(not name.endswith(f"-{_INPUTS}") for name in found):
                raise UserError(
                    f"{private(root, 'the output folder')}: voxout did not make {BUILDING}/{self.name}, in which "
                    "files are built, expected no such folder. Move it away, or choose another output folder."
                )

    def _require_free_places(self) -> None:
        taken = []
        for part in self.parts:
            folder = self.out.root / PARTS[part]
            if part in ("prepared", "maps", "pages"):  # shared by all subjects
                continue
            files = folder.rglob("*") if folder.is_dir() else [folder]
            taken += [str(f.relative_to(self.out.root)) for f in files if os.path.lexists(f) and not f.is_dir()]
        if taken:
            raise UserError(
                f"{private(self.out.root, 'the output folder')}: holds {some_of(sorted(taken))}, which no record of "
                "voxout lists, expected no such files. Move these files away, or choose another output folder."
            )


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
    root, set_aside = out.root, []
    for name in record.outputs:
        path = root / name
        if name in keep or not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
            continue
        _require_inside(root, name)
        if record.owns(root, name):
            path.unlink()
        else:
            _set_aside(root, name)
            set_aside.append(name)
        _remove_empty(path.parent, root)
    return set_aside


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
    set_aside = remove_recorded(out, record)
    path.unlink()
    _remove_empty(path.parent, out.root)
    return set_aside


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
        return _set_aside(root, name) if os.path.lexists(path) and not before.owns(root, name) else None

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
    _require_inside(out, str(record.relative_to(out)))
    if StageRecord.read(record) is None:
        StageRecord(_RUN, {}, {}).write(record)


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


def _is_listed(name: str, record: StageRecord | None) -> bool:
    return record is not None and name in record.outputs


def _require_inside(root: Path, name: str) -> None:
    """Refuse a path with a link that leads out of the output folder."""
    if not real((root / name).parent).is_relative_to(real(root)):
        raise UserError(
            f"{private(root, 'the output folder')}: a parent folder of {name} is a link that leads out of it, "
            "expected a folder. Replace the link by a folder, or choose another output folder."
        )


def _set_aside(root: Path, name: str) -> str:
    """Move a file to a free name in the folder ``set-aside``; return its new path, relative to the root."""
    path = root / SET_ASIDE / name
    _require_inside(root, f"{SET_ASIDE}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{number}-{path.name}")
    os.replace(root / name, free)
    return str(free.relative_to(root))


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root) and _is_empty(folder):
        folder.rmdir()
        folder = folder.parent


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _holds_nothing(path: Path) -> bool:
    """Whether a path is an empty folder or an empty file, such as a lock."""
    return _is_empty(path) or (path.is_file() and not path.is_symlink() and path.stat().st_size == 0)


def _read_inputs(path: Path) -> dict[str, Any] | None:
    try:
        values = load_json(path)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
