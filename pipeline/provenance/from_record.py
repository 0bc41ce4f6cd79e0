"""Description of a result from the record of its stage or subject."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.open_file import file_hash
from ..workflow import attempts
from ..workflow.origin import other_than_default
from ..workflow.records import StageRecord
from ..workflow.stage_titles import STAGE_TITLES
from .description import Description, Input

_TITLES = STAGE_TITLES | {
    "evaluate": "score maps of any method against lesion masks",
    "compare": "compare the scores of methods on the same subjects",
    "certify": "measure detection limits on lesions painted into held-out controls",
}
_OF_BEFORE = (
    "recorded by an earlier version of voxout, without command and commit; settings are those of this stage that "
    "differ from the defaults of today"
)
_HASHES = frozenset(
    {"t1w", "flair", "brain_mask", "lesion_mask", "template_transform", "prepared", "the patches", "the encoder"}
    | {"the detectors", "the adapted model", "the packed model", "the local controls", "the map", "the scores"}
    | {"the model without labels", "the labelled patients", "the matched controls"}
)
"""Inputs of which the record holds a hash."""


def of_record(
    record: StageRecord, out: OutputFolder, name: str, subject: SubjectRecord | None = None, path: Path | None = None
) -> Description:
    """Describe a result.

    Parameters
    ----------
    record : StageRecord
        That lists it.
    out : OutputFolder
    name : str
        What is described, relative to the output folder.
    subject : SubjectRecord, optional
        If the record is that of a subject.
    path : Path, optional
        The file, if it is one; its size and hash are compared with the record.
    """
    origin: Mapping[str, Any] = record.origin
    attempt = attempts.read(out, record.stage, subject.key) if subject is not None else None
    size, sha256, state = _file(record, name, path) if path is not None else (None, "", _state(record, out, name))
    return Description(
        name=name,
        command=origin.get("command", ""),
        stage=f"{record.stage}: {_TITLES[record.stage]}" if record.stage in _TITLES else "",
        subject=subject.key if subject is not None else "",
        began=record.started,
        seconds=record.wall_s or None,
        memory_mb=record.peak_memory_mb or None,
        machine=origin.get("host", "") or (attempt.host if attempt is not None else ""),
        device=record.device,
        seed=origin.get("seed", record.inputs.get("settings.seed")),
        settings=origin["settings"] if origin else _settings_of_stage(record),
        inputs=_inputs(record, out, subject),
        versions=record.versions,
        commit=origin.get("commit", ""),
        size=size,
        sha256=sha256,
        state=state,
        done=0 if subject is not None else len(record.done),
        failed=0 if subject is not None else len(record.failed),
        notes=(*(record.warnings if subject is not None else ()), *([] if origin else [_OF_BEFORE])),
    )


def _settings_of_stage(record: StageRecord) -> dict[str, Any]:
    """Return the settings among the inputs that differ from the defaults of this version."""
    # The seed of the preparation is not that of the run.
    return other_than_default(
        {
            name: value
            for name, value in record.inputs.items()
            if name.startswith("settings.") and name != "settings.seed"
        }
    )


def _inputs(record: StageRecord, out: OutputFolder, subject: SubjectRecord | None) -> list[Input]:
    """Return the inputs but for settings, each with the record in the folder that has its identity."""
    known = _identities(out, subject)
    found = [
        Input(name, f"hash {value}" if name in _HASHES or _is_hash(name, value) else value, known.get(value, ""))
        for name, value in sorted(record.inputs.items())
        if not name.startswith("settings.") and value is not None
    ]
    return found + [Input(name, f"hash {value}") for name, value in record.scans.items() if name not in record.inputs]


def _is_hash(name: str, value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and " " in name


def _identities(out: OutputFolder, subject: SubjectRecord | None) -> dict[Any, str]:
    """Return the records of the output folder by their identity."""
    paths = [out.record(stage) for stage in _TITLES]
    if subject is not None:
        paths += [out.subject_record(subject), out.map_record(subject)]
    records = ((path, StageRecord.read(path)) for path in paths)
    return {record.identity: str(path.relative_to(out.root)) for path, record in records if record is not None}


def _file(record: StageRecord, name: str, path: Path) -> tuple[int, str, str]:
    """Return the size and hash of a file, and whether they are those of its record."""
    size, found = path.stat().st_size, file_hash(path)
    if name not in record.outputs:
        return size, found, ""
    if size != record.outputs[name] or (name in record.hashes and found != record.hashes[name]):
        return size, found, f"CHANGED since voxout wrote it: it had {record.outputs[name]:,} bytes"
    return size, found, "as voxout wrote it" if name in record.hashes else "of the recorded size"


def _state(record: StageRecord, out: OutputFolder, name: str) -> str:
    """Compare the sizes of a folder's files with those in the record."""
    listed = [file for file in record.outputs if name == "." or file.startswith(f"{name}/")]
    missing = [file for file in listed if not (out.root / file).is_file()]
    changed = [f for f in listed if f not in missing and (out.root / f).stat().st_size != record.outputs[f]]
    found = [f"{len(listed):,} files"] if listed else []
    found += [f"{len(missing):,} of them missing"] if missing else []
    found += [f"{len(changed):,} of another size than recorded"] if changed else []
    return ", ".join(found) + (", complete" if listed and not missing and not changed else "")
