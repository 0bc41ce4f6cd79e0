"""Find out what a file or folder is that voxout wrote, and describe it.

In an output folder, records list every file. A map that has left it has a JSON file beside it, and a packed model its
card.
"""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord, parts_of_key
from ...data_manifests.errors import UserError
from ...data_manifests.user_paths import reach
from ..model.pack_file import SUFFIX
from ..workflow.ownership import BUILDING, EVALUATE, SET_ASIDE
from ..workflow.records import StageRecord
from ..workflow.scratch import SCRATCH
from ..workflow.stage_titles import STAGE_TITLES
from .description import EXPECTED, Description, no_record_of
from .from_record import of_record
from .from_sidecar import of_lone_map, what_it_holds

_STAGES = (*STAGE_TITLES, EVALUATE, "compare", "certify")
_OF_SUBJECT = {
    "prepare": OutputFolder.subject_record,
    "map": OutputFolder.map_record,
    "report": OutputFolder.page_record,
    "certify": OutputFolder.certificate_record,
}
"""Record of one subject in the stages that have one."""
_RUN = "run"
_WITHOUT_RECORD = {
    "log.jsonl": "messages of all commands in this folder",
    ".lock": "lock of the folder, which one run at a time holds",
    "records/scans.json": "places of the scans, kept on request (evaluation.keep_scan_places)",
    "records/operating_point.json": "the threshold of the model",
    "records/attempts": "state of each subject in each stage (`voxout status`)",
    BUILDING: "results that are being built, or of an interrupted run",
    SCRATCH: "temporary files of a run",
    SET_ASIDE: "files that were changed after voxout wrote them, or put in the place of a result",
}
_Owner = tuple[StageRecord, SubjectRecord | None]


def describe(path: Path) -> Description:
    """Describe a file or folder that voxout wrote.

    Raises
    ------
    UserError
        There is nothing, voxout did not make it, or what says where it comes from is damaged.
    """
    reach(path, EXPECTED)
    if path.is_file() and path.suffix == SUFFIX:
        from .of_model import of_packed

        return of_packed(path)
    place = Path(os.path.abspath(path))
    root = next((folder for folder in (place, *place.parents) if _is_output_folder(folder)), None)
    if root is not None:
        name = place.relative_to(root).as_posix()
        return _of_folder(OutputFolder(root)) if name in (".", "records") else _of_part(OutputFolder(root), name)
    return of_lone_map(path)


def _is_output_folder(folder: Path) -> bool:
    return any((folder / "records" / f"{name}.json").is_file() for name in (_RUN, *_STAGES))


def _of_folder(out: OutputFolder) -> Description:
    """Describe an output folder: its stages, and the card of its model."""
    records = {stage: StageRecord.read(out.record(stage)) for stage in _STAGES}
    parts = [
        of_record(record, out, str(out.record(stage).relative_to(out.root)))
        for stage, record in records.items()
        if record is not None
    ]
    damaged = _damaged(out)
    if not parts and damaged:
        raise no_record_of(out.root, damaged)
    commands = sorted({part.command for part in parts if part.command})
    whole = Description(
        name=out.root.name,
        holds=f"output folder of {', '.join(commands) or 'voxout'}" + ("" if parts else "; no stage has ended yet"),
        notes=[f"{name} is damaged: the stage runs again with the next `voxout run`" for name in damaged],
        parts=parts,
    )
    if records["fit"] is None:
        return whole
    from .of_model import with_model

    return with_model(whole, out)


def _of_part(out: OutputFolder, name: str) -> Description:
    """Describe a file or folder inside an output folder, by its relative name."""
    path = out.root / name
    owners = _candidates(out, name)
    if path.is_dir():
        parts = [
            of_record(record, out, name, subject)
            for record, subject in owners
            if any(file.startswith(f"{name}/") for file in record.outputs)
        ]
        # A stage lists the files of its subjects, too; the records of one subject say more.
        parts = [part for part in parts if part.subject] or parts
        if len(parts) == 1:
            return parts[0]
        if parts:
            return Description(name=name, parts=[replace(part, name=part.stage) for part in parts])
    owner = next(((r, s) for r, s in owners if name in r.hashes), None) or next(
        ((r, s) for r, s in owners if name in r.outputs or name == _name_of_record(out, r, s)), None
    )
    if owner is not None and path.is_file():
        record, subject = owner
        if record.stage == _RUN:
            return replace(of_record(record, out, name, path=path), holds="kept by every command", device="")
        return replace(of_record(record, out, name, subject, path), holds=what_it_holds(path))
    for own, holds in _WITHOUT_RECORD.items():
        if name == own or name.startswith(f"{own}/"):
            return Description(name=name, holds=holds)
    raise no_record_of(path, _damaged(out, name))


def _candidates(out: OutputFolder, name: str) -> list[_Owner]:
    """Return the records that may list a file: those of its subject first, then those of the stages."""
    found: list[_Owner] = []
    if (subject := _subject_of(out, name)) is not None:
        paths = _records_of(out, subject)
        found = [(record, subject) for path in paths if (record := StageRecord.read(path)) is not None]
    stages = (StageRecord.read(out.record(stage)) for stage in (*_STAGES, _RUN))
    return [*found, *((record, None) for record in stages if record is not None)]


def _records_of(out: OutputFolder, subject: SubjectRecord) -> list[Path]:
    return [record(out, subject) for record in _OF_SUBJECT.values()]


def _subject_of(out: OutputFolder, name: str) -> SubjectRecord | None:
    """Return the subject that the name of a file or folder belongs to; None if it belongs to all."""
    parts = PurePosixPath(name).parts
    pages = out.subject_pages.relative_to(out.root).parts
    key = ""
    if parts[0] in ("prepared", "maps") and len(parts) > 1:
        session = parts[2] if len(parts) > 2 and parts[2].startswith("ses-") else ""
        key = f"{parts[1]}_{session}" if session else parts[1]
    elif parts[: len(pages)] == pages and len(parts) > len(pages):
        key = PurePosixPath(parts[len(pages)]).stem.removesuffix("_clusters")
    elif parts[:2] == ("certificate", "heads") and len(parts) > 2:
        key = parts[2].removesuffix(".json").removesuffix(".record")
    if not key.startswith("sub-"):
        return None
    participant, session = parts_of_key(key)
    try:
        return SubjectRecord(participant, "patient", {}, session_id=session)
    except (UserError, ValueError):
        return None


def _name_of_record(out: OutputFolder, record: StageRecord, subject: SubjectRecord | None) -> str:
    path = _OF_SUBJECT[record.stage](out, subject) if subject is not None else out.record(record.stage)
    return path.relative_to(out.root).as_posix()


def _damaged(out: OutputFolder, name: str = "") -> list[str]:
    """Return the records that are there and cannot be read, of the stages and of the subject of a file."""
    paths = [out.record(stage) for stage in (_RUN, *_STAGES)]
    if name and (subject := _subject_of(out, name)) is not None:
        paths = [*_records_of(out, subject), *paths]
    broken = (path for path in paths if path.is_file() and StageRecord.read(path) is None)
    return [path.relative_to(out.root).as_posix() for path in broken]
