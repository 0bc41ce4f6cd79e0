"""`voxout evaluate`: scores of maps of any method against lesion masks, without a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.match_ids import IdFile, files_by_id, identity
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.participants import Person, person_of, read_participant_table
from ...data_manifests.errors import Failure, SubjectError, UserError, private, some_of
from ...data_manifests.images.volume import Volume, read_map, read_mask
from ...data_manifests.user_paths import real
from ...evaluation.scoring.sanity_checks import scoring_warnings
from ...evaluation.scoring.score_cohort import CohortScores, score_cohort
from ...evaluation.scoring.score_folder import SUBJECTS
from ...evaluation.scoring.score_subject import score_map
from ...evaluation.scoring.subject_scores import SubjectScores
from ...evaluation.scoring.tables import write_scores
from ...evaluation.settings import EvaluationSettings
from ..config.config import Config
from ..workflow.console import Console
from ..workflow.engine import usable_cores
from ..workflow.folders import make_folder
from ..workflow.lock import sole_user
from ..workflow.origin import Origin
from ..workflow.ownership import EVALUATE
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, versions
from ..workflow.removal import remove_building_folder
from ..workflow.replacement import Replacement
from ..workflow.runner import failures_table
from .score_page import write_score_page

_SWAPPED = "Are --maps and --masks swapped?"
WHOLE_IMAGE, BRAIN = "whole image", "brain mask"


@dataclass(frozen=True)
class MapFolders:
    """Folders of maps and masks, or paths with ``{id}`` in them (see `files_by_id`).

    Attributes
    ----------
    maps : str
        Anomaly maps, higher = more anomalous.
    masks : str or None
        Lesion masks; None: all subjects are healthy.
    brain_masks : str or None
        None: all voxels of the image are scored.
    cohort : Path or None
        Table with group, site, age and sex.
    healthy : sequence of str
        Ids, or patterns of ids, of healthy subjects: they set the threshold and need no lesion mask.
    """

    maps: str
    masks: str | None = None
    brain_masks: str | None = None
    cohort: Path | None = None
    healthy: Sequence[str] = ()


@dataclass(frozen=True)
class MapSubject:
    """The files of one id; `map` is None where only a mask was found."""

    key: str
    participant: Person
    map: IdFile | None
    mask: IdFile | None
    brain_mask: IdFile | None


@dataclass(frozen=True)
class MatchedMaps:
    """Subjects with a map or a mask, sorted by id, and notes on the match for the user."""

    folders: MapFolders
    subjects: tuple[MapSubject, ...]
    notes: tuple[str, ...]


def score_into(
    matched: MatchedMaps,
    settings: EvaluationSettings,
    out: Path,
    console: Console,
    *,
    jobs: int | None = None,
    seed: int = 0,
    page: bool = True,
    command: str = "voxout evaluate",
) -> tuple[CohortScores, tuple[Failure, ...]]:
    """Create the output folder, hold it, and score every map; see `score_folders`."""
    make_folder(out)
    jobs = jobs or usable_cores()
    with sole_user(out):
        return score_folders(matched, settings, out, console, jobs=jobs, seed=seed, page=page, command=command)


def score_folders(
    matched: MatchedMaps,
    settings: EvaluationSettings,
    out: Path,
    console: Console,
    *,
    jobs: int,
    seed: int = 0,
    page: bool = True,
    command: str = "voxout evaluate",
) -> tuple[CohortScores, tuple[Failure, ...]]:
    """Score every map, `jobs` at once; write the tables, the counts per subject, the failures and the `page`.

    `command` is for the record.

    Raises
    ------
    UserError
        The folders cannot be matched, or no subject could be scored.
    """
    for note in matched.notes:
        console.warn(f"note: {note}")
    files = Replacement(OutputFolder(out), EVALUATE, (), OutputFolder(out).record(EVALUATE))
    if (out / "scores.json").exists():
        console.warn(f"note: {private(out, 'the output folder')} held earlier scores; they are replaced.")
    files.begin({}, goes_on=lambda before, now: False)
    began, started = datetime.now(UTC).isoformat(), time.monotonic()
    scores, failures = _score_all(matched, settings, files.folder / SUBJECTS, console, jobs)
    if failures:
        (files.folder / "failures.csv").write_bytes(failures_table(failures))
    if not scores:
        if StageRecord.read(files.record) is None:
            files.finish(StageRecord(EVALUATE, {}, {}))
        files.discard(files.folder)
        swapped = any(failure.reason.endswith(_SWAPPED) for failure in failures)
        advice = _SWAPPED if swapped else "See the reasons above and correct the first."
        raise UserError(f"None of {len(matched.subjects)} subjects could be scored. {advice}")
    failed = [failure.key for failure in failures]
    _warn_of_lost_controls(matched, failed, console)
    mask = BRAIN if matched.folders.brain_masks else WHOLE_IMAGE
    cohort = score_cohort(scores, settings, space="the maps' own", mask=mask, seed=seed)
    for warning in scoring_warnings(cohort):
        console.warn(f"note: {warning}")
    write_scores(files.folder, cohort, left_out=failed)
    if page:
        write_score_page(files.folder, cohort, failures, matched.notes)
    done = tuple(s.key for s in scores)
    record = StageRecord(
        EVALUATE,
        {f"map and masks of {s.key}": _hash(s) for s in matched.subjects if s.key in done},
        {},
        done=done,
        failed=tuple(Failure(failure.key, EVALUATE, "failed") for failure in failures),
        started=began,
        wall_s=round(time.monotonic() - started, 2),
        versions=versions(),
        origin=Origin.of(command, Config(seed=seed, evaluation=settings)).recorded(),
    )
    files.finish(record)
    remove_building_folder(files.out)
    return cohort, tuple(failures)


def _hash(subject: MapSubject) -> str:
    return fingerprint([f and file_fingerprint(f.path) for f in (subject.map, subject.mask, subject.brain_mask)])


def _score_all(
    matched: MatchedMaps, settings: EvaluationSettings, folder: Path, console: Console, jobs: int
) -> tuple[list[SubjectScores], list[Failure]]:
    """Score every map and write its scores to ``<key>.npz``, with progress and failures on the console."""

    def scored(subject: MapSubject) -> SubjectScores | Failure:
        try:
            return _scored(subject, matched.folders, settings).save(folder / f"{subject.key}.npz")
        except UserError as error:
            reason = str(error) if isinstance(error, SubjectError) else f"{subject.key}: {error}"
            return Failure(subject.key, "score", reason)

    subjects, scores, failures = matched.subjects, [], []
    # Threads suffice: decompression, sorting and counting release the interpreter lock.
    with console.progress("score", "subject") as progress, ThreadPoolExecutor(jobs) as pool:
        for done, (subject, result) in enumerate(zip(subjects, pool.map(scored, subjects), strict=True), start=1):
            progress(done, len(subjects), subject.key)
            if isinstance(result, Failure):
                failures.append(result)
                console.warn(f"FAILED {result.reason}")
            else:
                scores.append(result)
                console.say(f"    scored {subject.key}", level=1)
    return scores, failures


def _warn_of_lost_controls(matched: MatchedMaps, failed: Sequence[str], console: Console) -> None:
    healthy = [subject.key for subject in matched.subjects if subject.participant.group == "control"]
    lost = [key for key in healthy if key in failed]
    if lost:
        console.warn(
            f"note: the threshold uses {len(healthy) - len(lost)} of {len(healthy)} healthy maps: {some_of(lost)} "
            "could not be scored. Correct them and score again."
        )


def require_own_folder(out: Path, folders: MapFolders) -> None:
    """Refuse an output folder with files that `voxout evaluate` did not write, such as that of a run.

    Raises
    ------
    UserError
        The folder holds other files.
    """
    inputs = [Path(where) for where in (folders.maps, folders.masks, folders.brain_masks) if where]
    if any(real(out) == real(where) for where in inputs):
        raise UserError(
            f"--out {private(out, 'the output folder')}: is a folder of maps or masks, expected another folder. Choose "
            "another one."
        )
    if not out.is_dir() or StageRecord.read(OutputFolder(out).record(EVALUATE)) is not None:
        return
    others = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if others:
        raise UserError(
            f"--out {private(out, 'the output folder')}: holds other files ({some_of(map(private, sorted(others)))}), "
            "expected a new folder or one that `voxout evaluate` made. Choose another one."
        )


def match_subjects(folders: MapFolders) -> MatchedMaps:
    """Match maps, lesion masks and brain masks by subject id.

    Raises
    ------
    UserError
        The folders cannot be matched.
    """
    run = next((f for f in (Path(folders.maps), Path(folders.maps).parent) if OutputFolder(f).config.is_file()), None)
    if run is not None and "{id}" not in folders.maps:
        raise UserError(
            f"--maps {private(folders.maps)}: is the folder of a run, expected maps only. Score the run with `voxout "
            f"score COHORT {private(run)}`, or give its maps: --maps "
            f"'{private(run)}/maps/{{id}}/anat/{{id}}_space-orig_desc-anomaly_zmap.nii.gz'."
        )
    maps = files_by_id(folders.maps, "--maps")
    masks = files_by_id(folders.masks, "--masks") if folders.masks else {}
    brains = files_by_id(folders.brain_masks, "--brain-masks") if folders.brain_masks else {}
    participants = read_participant_table(folders.cohort) if folders.cohort else {}
    names = sorted(maps.keys() | masks.keys())
    if not maps.keys() & masks.keys() and masks:
        shown = f"{next(iter(maps.values())).name} among the maps, {next(iter(masks.values())).name} among the masks"
        raise UserError(
            f"--maps and --masks: no id has a map and a mask (found {shown}), expected the same ids in both. "
            "Mark the id in the paths, as in --maps 'maps/{id}_map.nii.gz' --masks 'masks/{id}_seg.nii.gz'."
        )
    healthy = _named_healthy(folders.healthy, names)
    subjects = []
    for name in names:
        participant = person_of(name, participants)
        if name in healthy and participant.group == "patient":
            raise UserError(f"{name}: is a patient in the cohort table and named by --healthy. Correct one of them.")
        group = "control" if name in healthy else participant.group
        key = (maps.get(name) or masks[name]).name.replace("/", "_")
        who = replace(participant, group=group)
        subjects.append(MapSubject(key, who, maps.get(name), masks.get(name), brains.get(name)))
    patients = [s.key for s in subjects if s.participant.group != "control"]
    if not folders.masks and patients:
        raise UserError(
            f"No --masks, and {len(patients)} subjects are not healthy ({some_of(patients)}), expected a lesion mask "
            "for each. Give the folder of masks, or mark healthy subjects: --healthy '*', or group control in --cohort."
        )
    return MatchedMaps(folders, tuple(subjects), tuple(_notes(subjects, names, participants, folders)))


def _notes(
    subjects: Sequence[MapSubject], names: Sequence[str], participants: Mapping[str, Person], folders: MapFolders
) -> list[str]:
    notes = []
    unknown = [s.key for s in subjects if s.map and not s.mask and s.participant.group != "control"]
    if unknown:
        notes.append(
            f"maps without a lesion mask are left out of all scores: {some_of(unknown)}. "
            "If these subjects are healthy, mark them by --healthy ID ... or group control in --cohort."
        )
    if not folders.brain_masks:
        notes.append("no --brain-masks: all voxels of the image are scored, including air, which inflates most scores.")
    if not any(s.participant.group == "control" for s in subjects):
        notes.append("no subject is healthy: no threshold can be set, and scores that need one are undefined.")
    covered = {name.partition("_ses-")[0] for name in names} | set(names)
    elsewhere = [name for name in participants if name not in covered and name.partition("_ses-")[0] not in covered]
    if elsewhere:
        notes.append(f"in the cohort table, but without map and mask: {some_of(elsewhere)}.")
    return notes


def _named_healthy(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    healthy: set[str] = set()
    for pattern in (part.strip() for several in patterns for part in several.split(",")):
        hits = {name for name in names if fnmatchcase(name, identity(pattern))}
        if not hits:
            raise UserError(
                f"--healthy {pattern}: no such subject, expected an id such as {names[0]}. Check the ids, and "
                "put quotes around patterns ('control*')."
            )
        healthy |= hits
    return healthy


def _scored(subject: MapSubject, folders: MapFolders, settings: EvaluationSettings) -> SubjectScores:
    key, participant = subject.key, subject.participant
    if subject.map is None:
        raise SubjectError(f"{key}: has a lesion mask but no map. Add the map, or remove the mask.")
    if folders.brain_masks and subject.brain_mask is None:
        raise SubjectError(f"{key}: has a map but no brain mask. Add the mask, or score all without --brain-masks.")

    def read(reader: Callable[[Path], Volume], file: IdFile, role: str) -> Volume:
        try:
            return reader(file.path)
        except UserError as error:
            # Name the file by its role: a subject's files may share a file name, which may identify a person.
            message = str(error).replace(f"{private(file.path)}: ", "").replace(f"{private(file.path.name)}: ", "")
            raise SubjectError(f"{key}, {role}: {message}") from error

    map = read(read_map, subject.map, "map")
    if subject.brain_mask is None:
        inside = map.with_voxels(np.ones(map.voxels.shape, dtype=bool))
    else:
        inside = read(read_mask, subject.brain_mask, "brain mask")
    try:
        truth = read(read_mask, subject.mask, "lesion mask") if subject.mask else None
    except SubjectError as error:
        if len(np.unique(map.voxels)) > 2:
            raise
        raise SubjectError(
            f"{key}: the map has two values and the lesion mask has more, expected the reverse. {_SWAPPED}"
        ) from error
    about = {"site": participant.site, "age": participant.age, "sex": participant.sex}
    return score_map(key, map, inside, truth, None, settings, group=participant.group or "patient", **about)
