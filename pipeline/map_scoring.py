"""`voxout score --maps ...`: anybody's maps against anybody's masks, with no run behind them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..data_manifests.errors import Failure, SubjectError, UserError
from ..data_manifests.matching import IdFile, files_by_id, identity
from ..data_manifests.people import Person, person_of, read_people
from ..data_manifests.volume import Volume, read_map, read_mask
from ..evaluation.score_cohort import CohortScores, score_cohort
from ..evaluation.score_folder import SUBJECTS
from ..evaluation.score_subject import SubjectScores, score_map
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tables import write_scores
from .console import Console
from .run import write_failures

WHOLE_IMAGE, BRAIN = "whole image", "brain mask"


@dataclass(frozen=True)
class MapFolders:
    """Where maps and masks lie: folders, or paths with ``{id}`` in them (see `files_by_id`).

    Attributes
    ----------
    maps, masks : str
        Anomaly maps, higher = more anomalous; lesion masks.
    brain_masks : str or None
        None: every voxel of the image counts.
    cohort : Path or None
        Table of group, site and age.
    healthy : sequence of str
        Ids, or patterns of ids, of healthy subjects: they set the threshold and need no mask.
    """

    maps: str
    masks: str
    brain_masks: str | None = None
    cohort: Path | None = None
    healthy: Sequence[str] = ()


@dataclass(frozen=True)
class MapSubject:
    """The files of one id; `map` is None where only a mask was found."""

    key: str
    person: Person
    map: IdFile | None
    mask: IdFile | None
    brain_mask: IdFile | None


def score_folders(
    folders: MapFolders, settings: EvaluationSettings, out: Path, console: Console, *, seed: int = 0
) -> tuple[CohortScores, tuple[Failure, ...]]:
    """Score every map; write the tables, what each subject leaves behind, and who could not be scored.

    Raises
    ------
    UserError
        Folders that cannot be matched, or no subject at all that could be scored.
    """
    subjects, notes = match_subjects(folders)
    for note in notes:
        console.warn(f"note: {note}")
    if (out / "scores.json").exists():
        console.warn(f"note: {out} held scores before; these take their place.")
    shutil.rmtree(out / SUBJECTS, ignore_errors=True)
    scores: list[SubjectScores] = []
    failures: list[Failure] = []
    with console.progress("score", "subject") as progress:
        for done, subject in enumerate(subjects):
            progress(done, len(subjects), subject.key)
            try:
                scored = _scored(subject, folders, settings)
                scores.append(scored.save(out / SUBJECTS / f"{subject.key}.npz"))
                console.say(f"    scored {subject.key}", level=1)
            except UserError as error:
                reason = str(error) if isinstance(error, SubjectError) else f"{subject.key}: {error}"
                failures.append(Failure(subject.key, "score", reason))
                console.warn(f"FAILED {reason}")
    write_failures(out / "failures.csv", failures)
    if not scores:
        raise UserError([failure.reason for failure in failures])
    mask = BRAIN if folders.brain_masks else WHOLE_IMAGE
    cohort = score_cohort(scores, settings, space="the maps' own", mask=mask, seed=seed)
    write_scores(out, cohort, left_out=[failure.key for failure in failures])
    return cohort, tuple(failures)


def match_subjects(folders: MapFolders) -> tuple[list[MapSubject], list[str]]:
    """Everybody with a map or a mask, in the order of their ids, and what the user should know of the match."""
    maps, masks = files_by_id(folders.maps, "--maps"), files_by_id(folders.masks, "--masks")
    brains = files_by_id(folders.brain_masks, "--brain-masks") if folders.brain_masks else {}
    people = read_people(folders.cohort) if folders.cohort else {}
    names = sorted(maps.keys() | masks.keys())
    if not maps.keys() & masks.keys() and masks:
        shown = f"{next(iter(maps.values())).name} among the maps, {next(iter(masks.values())).name} among the masks"
        raise UserError(
            f"--maps and --masks: no map and no mask of one id (found {shown}), expected the same ids in both. "
            "Say which part of the path is the id, as in --maps 'maps/{id}_map.nii.gz' --masks 'masks/{id}_seg.nii.gz'."
        )
    healthy = _named_healthy(folders.healthy, names)
    subjects = []
    for name in names:
        person = person_of(name, people)
        if name in healthy and person.group == "patient":
            raise UserError(f"{name}: is a patient in the cohort table and named by --healthy. Correct one of them.")
        group = "control" if name in healthy else person.group
        key = (maps.get(name) or masks[name]).name.replace("/", "_")
        subject = MapSubject(
            key, Person(group, person.site, person.age), maps.get(name), masks.get(name), brains.get(name)
        )
        subjects.append(subject)
    return subjects, _notes(subjects, names, people, folders)


def _notes(
    subjects: Sequence[MapSubject], names: Sequence[str], people: Mapping[str, Person], folders: MapFolders
) -> list[str]:
    notes = []
    unknown = [s.key for s in subjects if s.map and not s.mask and s.person.group != "control"]
    if unknown:
        notes.append(
            f"{len(unknown)} maps have no lesion mask and enter no figure ({_some(unknown)}). "
            "If these subjects are healthy, name them: --healthy ID ..., or group control in --cohort."
        )
    if not folders.brain_masks:
        notes.append("no --brain-masks: every voxel of the image counts, air too, which flatters most figures.")
    if not any(s.person.group == "control" for s in subjects):
        notes.append("nobody is healthy: no threshold can be set, and figures that need one are not defined.")
    covered = {name.partition("_ses-")[0] for name in names} | set(names)
    elsewhere = [name for name in people if name not in covered and name.partition("_ses-")[0] not in covered]
    if elsewhere:
        notes.append(f"{len(elsewhere)} subjects of the cohort table have neither map nor mask ({_some(elsewhere)}).")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _named_healthy(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    healthy: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, identity(pattern))}
        if not hits:
            raise UserError(f"--healthy {pattern}: no such subject, expected an id such as {names[0]}. Check the ids.")
        healthy |= hits
    return healthy


def _scored(subject: MapSubject, folders: MapFolders, settings: EvaluationSettings) -> SubjectScores:
    key, person = subject.key, subject.person
    if subject.map is None:
        raise SubjectError(f"{key}: has a lesion mask and no map. Make the map, or take the mask away.")
    if folders.brain_masks and subject.brain_mask is None:
        raise SubjectError(f"{key}: has a map and no brain mask. Add the mask, or score all without --brain-masks.")

    def read(reader: Callable[[Path], Volume], file: IdFile, role: str) -> Volume:
        try:
            return reader(file.path)
        except UserError as error:
            # All of a subject's files may have the same name.
            raise SubjectError(f"{key}, {role}: {error}") from error

    map = read(read_map, subject.map, "map")
    if subject.brain_mask is None:
        inside = map.with_voxels(np.ones(map.voxels.shape, dtype=bool))
    else:
        inside = read(read_mask, subject.brain_mask, "brain mask")
    truth = read(read_mask, subject.mask, "lesion mask") if subject.mask else None
    group = person.group or "patient"
    return score_map(key, map, inside, truth, None, settings, group=group, site=person.site, age=person.age)
