"""Replacement of outputs: new files are built in a separate folder and moved to their places once complete.

No other module of the pipeline deletes a file. A file belongs to voxout if a record lists it with its current size and
hash. Any other file in an output folder is never deleted or overwritten.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import PARTS, OutputFolder
from ...data_manifests.errors import UserError, private, some_of
from ...data_manifests.typed_json import load_json
from ...data_manifests.user_paths import real
from ..config.config import comparable
from .records import StageRecord, evidence, write_json

EVALUATE = "evaluate"
"""Name of the record by which a folder of `voxout evaluate` is told apart from that of a run."""
BUILDING = ".building"
SET_ASIDE = "set-aside"
OWN_NAMES = frozenset(Path(name).parts[0] for name in PARTS.values()) | {
    "config.yaml",
    "failures.csv",
    "records",
    BUILDING,
    SET_ASIDE,
}
"""Names that voxout writes at the top of an output folder."""
_INPUTS, _RECORD = ".inputs.json", ".record.json"


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
            Files that no record lists exist in the places of these.
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
        """Move finished files to their places, if a call was killed while it did so."""
        if StageRecord.read(self.folder / _RECORD) is not None:
            self._put_in_place()

    def discard(self, *folders: Path) -> None:
        """Delete folders of built files."""
        for path in folders:
            if path.is_relative_to(self.folder) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

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
            os.replace(path, _free_name(root / SET_ASIDE / name))
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
    found = sorted(name for name in OWN_NAMES if os.path.lexists(out / name) and not _is_empty(out / name))
    # A run that stopped in its first stage leaves these, and its log.
    if found and not (set(found) <= {"config.yaml", "failures.csv", BUILDING} and (out / "log.jsonl").is_file()):
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


def _free_name(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{number}-{path.name}")
    return free


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root) and _is_empty(folder):
        folder.rmdir()
        folder = folder.parent


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _read_inputs(path: Path) -> dict[str, Any] | None:
    try:
        values = load_json(path)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
