"""Replacement of outputs: new files are built in a separate folder and moved to their places once complete.

Earlier outputs are deleted as their record says (see `removal`). A folder in which files are built belongs to voxout
if it holds the record of their inputs.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import PARTS, OutputFolder
from ...data_manifests.errors import UserError, private, some_of
from ...data_manifests.typed_json import load_json
from ...data_manifests.user_paths import real
from ..config.config import comparable
from .ownership import BUILDING, require_inside
from .records import StageRecord, evidence, write_json
from .removal import remove_recorded

_INPUTS, _RECORD, _DISCARDED = ".inputs.json", ".record.json", ".discarded"


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
        require_inside(root, str(self.record.relative_to(root)))
        here = [name for name in new.outputs if (self.folder / name).is_file()]
        foreign = [
            name
            for name in here
            if os.path.lexists(root / name) and not _is_listed(name, old) and not new.owns(root, name)
        ]
        if foreign := self._without_those_of_other_stages(foreign):
            raise UserError(
                f"{private(root, 'the output folder')}: voxout did not write {some_of(foreign)}, which is in the place "
                "of a result, expected no such file. Move it away and run the same command again; computed results "
                "are kept."
            )
        if old is not None:
            # Files without a hash, such as those of a subject, have a record of their own.
            others = frozenset(old.outputs) - frozenset(old.hashes)
            if not frozenset(old.outputs) <= frozenset(new.outputs):
                # A version before this one may have written a file in another stage, which now lists it.
                others |= {name for record in self._other_records() for name in record.hashes}
            remove_recorded(self.out, old, keep=frozenset(new.outputs) - frozenset(here) | others)
        for name in here:
            require_inside(root, name)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / name, root / name)
        new.write(self.record)
        self.discard(self.folder)

    def _other_records(self) -> list[StageRecord]:
        """Return the records of all other stages."""
        paths = (path for path in sorted((self.out.root / "records").glob("*.json")) if path != self.record)
        return [record for path in paths if (record := StageRecord.read(path)) is not None]

    def _without_those_of_other_stages(self, names: Sequence[str]) -> list[str]:
        records = self._other_records() if names else []
        return [n for n in names if not any(n in record.hashes and record.owns(self.out.root, n) for record in records)]

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
            if part in ("prepared", "maps", "pages", "cluster_maps", "certificate_heads"):  # shared by all subjects
                continue
            files = folder.rglob("*") if folder.is_dir() else [folder]
            taken += [str(f.relative_to(self.out.root)) for f in files if os.path.lexists(f) and not f.is_dir()]
        if taken := self._without_those_of_other_stages(taken):
            raise UserError(
                f"{private(self.out.root, 'the output folder')}: holds {some_of(sorted(taken))}, which no record of "
                "voxout lists, expected no such files. Move these files away, or choose another output folder."
            )


def _is_listed(name: str, record: StageRecord | None) -> bool:
    return record is not None and name in record.outputs


def _read_inputs(path: Path) -> dict[str, Any] | None:
    try:
        values = load_json(path)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
