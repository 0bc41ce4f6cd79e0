"""Subjects that an earlier call mapped in an output folder and that are not in the current manifest.

Their maps, pages and table rows stay until `voxout remove` deletes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord, original_key, parts_of_key
from ...data_manifests.errors import UserError, private
from .attempts import forget
from .records import StageRecord, file_fingerprint
from .removal import remove_recorded, remove_unfinished, remove_with_record
from .scan_places import forget_places

COMPARISON = "comparison.json", "comparison.csv", "lesion_groups.csv", "report/index.html"
"""What `voxout rivals` writes about all methods together, in its folder."""
_DESCRIBED = ("subject_id", "session_id", "group", "site", "age", "sex")


def about_subject(subject: SubjectRecord) -> dict[str, Any]:
    """Return what a map's record keeps of its subject: hashes of its scans, no path, since one may contain a name."""
    described = {name: getattr(subject, name) for name in _DESCRIBED}
    return described | {name: file_fingerprint(path) for name, path in subject.images.items()}


def earlier_subjects(out: OutputFolder, manifest: Manifest, model: Mapping[str, Any]) -> dict[str, SubjectRecord]:
    """Find subjects with a map of the same model that are not in the manifest.

    Parameters
    ----------
    out : OutputFolder
    manifest : Manifest
    model : mapping
        Inputs of a map's record that identify the model and the settings.

    Returns
    -------
    dict from key to SubjectRecord
        Without scans; the lesion mask is the prepared one.
    """
    listed = {record.key for record in manifest}
    found = {}
    for path in sorted(out.maps.glob("sub-*/**/record.json")):
        record = StageRecord.read(path)
        if record is None or not record.about or not record.is_complete(out.root):
            continue
        try:
            subject = SubjectRecord(**{name: record.about[name] for name in _DESCRIBED}, images={})
        except (KeyError, TypeError):
            continue
        if subject.key in listed or out.map_record(subject) != path or not out.native_brain_mask(subject).is_file():
            continue
        if any(record.inputs.get(name) != value for name, value in model.items()):
            continue
        mask = out.native_lesion_mask(subject)
        found[subject.key] = SubjectRecord(
            **{name: record.about[name] for name in _DESCRIBED},
            images={},
            lesion_mask=mask if mask.is_file() else None,
        )
    return found


@dataclass(frozen=True)
class Removed:
    """What `remove_subjects` has done.

    Attributes
    ----------
    keys : tuple of str
        Of the removed subjects.
    set_aside : tuple of str
        Files that were changed since voxout wrote them: they are in the folder ``set-aside``.
    in_model : tuple of str
        Training controls: ``patches``, the encoder and the detectors still hold their data.
    in_patches : tuple of str
        Held-out controls: ``patches`` still holds their data.
    """

    keys: tuple[str, ...]
    set_aside: tuple[str, ...]
    in_model: tuple[str, ...]
    in_patches: tuple[str, ...]


def remove_subjects(out: OutputFolder, names: Sequence[str]) -> Removed:
    """Delete the files that were made of single subjects: prepared images, latents, maps, pages, scores.

    Parameters
    ----------
    out : OutputFolder
    names : sequence of str
        Keys or ids, with or without ``sub-``.

    Returns
    -------
    Removed

    Raises
    ------
    UserError
        A subject has no outputs. Then nothing is removed.
    """
    subjects = {s.key: s for name in names for s in _of_name(out, name)}
    in_model = tuple(key for key in sorted(subjects) if _own_files(out, "fit", key))
    extracted = StageRecord.read(out.record("extract"))
    in_patches = tuple(key for key in sorted(subjects) if extracted and key in extracted.done and key not in in_model)
    set_aside: list[str] = []
    for key, subject in sorted(subjects.items()):
        for path in _records(out, subject):
            set_aside += remove_with_record(out, path)
        for stage in ("fit", "score"):
            if (record := StageRecord.read(out.record(stage))) is not None:
                keep = frozenset(record.outputs) - frozenset(_own_files(out, stage, key))
                set_aside += remove_recorded(out, record, keep=keep)
        remove_unfinished(out, key)
        forget(out, key)
        _remove_of_rivals(out, key)
    forget_places(out, subjects)
    return Removed(tuple(sorted(subjects)), tuple(set_aside), in_model, in_patches)


def _remove_of_rivals(out: OutputFolder, key: str) -> None:
    """Delete what `voxout rivals` made of a subject, and the comparison, whose page may show it."""
    made = [*out.rivals.glob(f"*/maps/*/{key}.npy"), *out.rivals.glob(f"*/scores/*/{key}.npz")]
    if made:
        made += [out.rivals / name for name in COMPARISON]
    for path in made:
        path.unlink(missing_ok=True)


def _of_name(out: OutputFolder, name: str) -> list[SubjectRecord]:
    participant, session = parts_of_key(name)
    sessions = {session}
    if session is None:
        parts = [out.part(part) for part in ("prepared", "maps")]
        sessions |= {f.name.removeprefix("ses-") for part in parts for f in (part / f"sub-{participant}").glob("ses-*")}
    made = [SubjectRecord(participant, "patient", {}, session_id=s) for s in sorted(sessions, key=str)]
    made = [subject for subject in made if any(StageRecord.read(path) for path in _records(out, subject))]
    if not made:
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds no output of {name}, expected a prepared "
            "subject. Check the id."
        )
    return made


def _records(out: OutputFolder, subject: SubjectRecord) -> list[Any]:
    return [
        out.certificate_record(subject),
        out.page_record(subject),
        out.map_record(subject),
        out.subject_record(subject),
    ]


def _own_files(out: OutputFolder, stage: str, key: str) -> list[str]:
    """Return the files of one subject among those that a stage wrote, such as its latents."""
    record = StageRecord.read(out.record(stage))
    return [name for name in (record.outputs if record else ()) if original_key(PurePosixPath(name).stem) == key]
