"""Places of the scans that a model was applied to, so that a later call can show them again on the subjects' pages.

A path may contain a name, so places are kept only on request (``evaluation.keep_scan_places``), in a file of their own,
``records/scans.json``, which only its owner can read. A scan is used only if its hash is that in the record of its map.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError
from ...data_manifests.terms import Modality
from ...data_manifests.typed_json import Content, read_json
from .ownership import require_inside
from .records import StageRecord, file_fingerprint, fingerprint

_NAME = "scans"
_UNKNOWN = "The place of this scan was not kept (setting evaluation.keep_scan_places)"
_GONE = "The scan is no longer where it was when it was mapped"
_CHANGED = "The scan has changed since it was mapped"


class _Places(Content):
    format: Literal["voxout scans 1"] = "voxout scans 1"
    scans: dict[str, dict[Modality, str]] = Field(default_factory=dict)


def keep_places(out: OutputFolder, subjects: Iterable[SubjectRecord]) -> None:
    """Add the places of the subjects' scans to those that are kept."""
    kept = _read(out)
    now = dict(kept)
    for subject in subjects:
        now[subject.key] = {name: str(path.absolute()) for name, path in subject.images.items()}
    _write(out, kept, now)


def forget_places(out: OutputFolder, keys: Collection[str]) -> None:
    """Delete the places of some subjects' scans."""
    kept = _read(out)
    _write(out, kept, {key: places for key, places in kept.items() if key not in keys})


def state_of_scans(out: OutputFolder, subject: SubjectRecord) -> str | None:
    """Return a value that changes if the scans of an earlier call appear, disappear or change; None without a T1w."""
    found = {}
    for name, place in _read(out).get(subject.key, {}).items():
        try:
            state = os.stat(place)
        except (OSError, ValueError):
            continue
        found[name] = [state.st_size, state.st_mtime_ns]
    return fingerprint(found) if "t1w" in found else None


def scans_of_earlier_call(out: OutputFolder, subject: SubjectRecord) -> tuple[dict[Modality, Path], str]:
    """Find the scans of a subject that an earlier call mapped.

    Returns
    -------
    dict from modality to Path
        Those that are unchanged; empty without the T1w.
    str
        Why there is none, as the start of a sentence; empty if there are scans.
    """
    places: dict[Modality, Path] = {name: Path(at) for name, at in _read(out).get(subject.key, {}).items()}
    record = StageRecord.read(out.map_record(subject))
    if "t1w" not in places or record is None:
        return {}, _UNKNOWN
    now = {name: file_fingerprint(path) for name, path in places.items()}
    if now["t1w"] == "missing":
        return {}, _GONE
    if now["t1w"] != record.about.get("t1w"):
        return {}, _CHANGED
    return {name: path for name, path in places.items() if now[name] == record.about.get(name)}, ""


def _read(out: OutputFolder) -> Mapping[str, dict[Modality, str]]:
    path = out.record(_NAME)
    try:
        # Pages are complete without it, so a damaged file is as good as none.
        return read_json(path, _Places, "places of scans", "").scans if path.exists() else {}
    except UserError:
        return {}


def _write(
    out: OutputFolder, before: Mapping[str, dict[Modality, str]], now: Mapping[str, dict[Modality, str]]
) -> None:
    if now == before:
        return
    path = out.record(_NAME)
    require_inside(out.root, str(path.relative_to(out.root)))
    with atomic_write(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(_Places(scans=dict(now)).model_dump_json(indent=1))
