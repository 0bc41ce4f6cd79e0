"""The functions of ``import voxout``: what the command line does, as functions that return objects."""

import json
import math
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_manifests.cohort.manifest import read_manifest
from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import Manifest
from ..data_manifests.errors import Failure, UserError, plain_errors, private
from .config.config import load_config, read_settings, require_settings_of_model, save_config
from .config.own_commands import require_own_commands, with_commands_of
from .stages.order import STAGES
from .workflow.console import Console
from .workflow.device import choose_device
from .workflow.engine import Engine
from .workflow.folders import make_folder
from .workflow.replacement import require_apart, require_own_place
from .workflow.runner import Run, require_current, run_stages
from .workflow.scratch import at_work_in

if TYPE_CHECKING:
    from ..evaluation.scoring.compare import Comparison
    from ..evaluation.scoring.score_cohort import CohortScores
    from .model.anomaly_model import AnomalyModel

_TORCH_STAGES = frozenset({"train", "fit", "map"})
_UNTIL_FIT = ("check", "prepare", "extract", "train", "fit")
Settings = Mapping[str, Any] | Sequence[str]
"""Changed settings: ``{"models.detector.nu": 0.05}``, or as on the command line: ``["models.detector.nu=0.05"]``."""


@dataclass(frozen=True)
class RunOptions:
    """What a run of stages is asked to do.

    Attributes
    ----------
    manifest : Manifest
    out : Path
        Output folder.
    stages : sequence of str
        In order; names of `STAGE_TITLES`.
    cohort : Path or None
        The file or BIDS folder that the manifest was read from.
    model : Path or None
        Folder of an earlier run whose model is applied; None: the run fits its own.
    config : Path or None
        A YAML file of settings.
    preset : str or None
    settings : sequence of str
        ``NAME=VALUE``.
    seed, seeds : int or None
        See `read_settings`.
    device : str
    jobs : int or None
        Subjects worked on at once; None: one per core.
    subjects : sequence of str or None
        Work on these only.
    reference_runs : sequence of (name, path)
        Runs whose figures the report shows next to its own.
    dry_run : bool
    """

    manifest: Manifest
    out: Path
    stages: Sequence[str]
    cohort: Path | None = None
    model: Path | None = None
    config: Path | None = None
    preset: str | None = None
    settings: Sequence[str] = ()
    seed: int | None = None
    seeds: int | None = None
    device: str = "auto"
    jobs: int | None = None
    subjects: Sequence[str] | None = None
    reference_runs: Sequence[tuple[str, Path]] = ()
    dry_run: bool = False


def run_pipeline(options: RunOptions, open_console: Callable[[], Console]) -> tuple[Run, tuple[Failure, ...]]:
    """Bring the stages of a run up to date, in order.

    Parameters
    ----------
    options : RunOptions
    open_console : callable
        Called once the folders are known to be usable.

    Returns
    -------
    Run
    tuple of Failure
        Subjects that failed.

    Raises
    ------
    UserError
        Settings, folders or inputs that cannot be used. The settings of the folder stay as they were.
    """
    out = OutputFolder(options.out)
    model = OutputFolder(options.model) if options.model else None
    saved_in = model.fitted_config if model else out.config
    # The settings of a run apply to every later command on its folder, until others are given.
    resumes = options.config is None and options.preset is None and saved_in.is_file()
    saved = read_settings(saved_in) if model or resumes else None
    given = read_settings(
        options.config,
        saved=saved if resumes else None,
        preset=options.preset,
        overrides=options.settings,
        seed=options.seed,
        seeds=options.seeds,
    )
    config = given.config
    if "prepare" in options.stages:
        require_own_commands(config, given.named, saved_in)
    if model and saved:
        require_settings_of_model(config, with_commands_of(config, saved.config))
    require_own_place(options.out)
    dataset = options.cohort if options.cohort is not None and options.cohort.is_dir() else None
    require_apart(options.out, _inputs(options), dataset)
    chosen = _chosen(options.manifest, options.subjects)
    console = open_console()
    for note in given.notes:
        console.warn(f"note: {note}")
    if resumes:
        console.say(f"settings: loaded from {private(saved_in, 'the saved settings')}")
    with nullcontext() if options.dry_run else at_work_in(options.out), Engine(options.jobs) as engine:
        run = Run(
            manifest=options.manifest,
            config=config,
            out=out,
            model=model or out,
            chosen=chosen,
            engine=engine,
            device=choose_device(options.device) if _TORCH_STAGES & set(options.stages) else "cpu",
            console=console,
            reference_runs=tuple(options.reference_runs),
        )
        if len(options.stages) == 1:
            require_current(STAGES[options.stages[0]], STAGES, run)
        before = load_config(out.config) if out.config.is_file() else None
        if not options.dry_run:
            save_config(out.config, config)
        try:
            failures = run_stages(options.stages, STAGES, run, dry_run=options.dry_run)
        except UserError:
            # Refused settings must not become the settings of the folder.
            if before is not None:
                save_config(out.config, before)
            else:
                out.config.unlink(missing_ok=True)
            raise
    return run, failures


def read_cohort(path: str | Path) -> Manifest:
    """Read a cohort: a CSV file with one row per scan, or a BIDS folder.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Manifest
        Its ``controls`` and ``patients`` are tuples of `SubjectRecord`; ``notes`` lists what was ignored.

    Raises
    ------
    UserError
        With all problems at once.

    Examples
    --------
    >>> cohort = voxout.read_cohort("cohort.csv")                                         # doctest: +SKIP
    >>> len(cohort.controls), len(cohort.patients)                                        # doctest: +SKIP
    (60, 12)
    """
    with plain_errors():
        return read_manifest(Path(path))


def fit(
    cohort: Manifest | str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Settings = (),
    seed: int | None = None,
    device: str = "auto",
    jobs: int | None = None,
    verbose: bool = True,
) -> "AnomalyModel":
    """Fit a model of normal anatomy to the controls of a cohort.

    Does what ``voxout run`` does up to the stage fit: checks every scan, prepares it, trains the encoder and fits the
    detectors. What an earlier call has completed is not done again.

    Parameters
    ----------
    cohort : Manifest, str or Path
    out : str or Path
        Output folder of the run.
    preset : str, optional
        Such as ``"fast"``, which trains no encoder.
    config : str or Path, optional
        A YAML file of settings.
    settings : mapping or sequence of str, optional
        Single settings, such as ``{"models.detector.nu": 0.05}``.
    seed : int, optional
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    jobs : int, optional
        Subjects worked on at once; one per core by default.
    verbose : bool
        Print a line per stage.

    Returns
    -------
    AnomalyModel

    Raises
    ------
    UserError
        A scan, a setting or a folder cannot be used.
    """
    from .model.anomaly_model import AnomalyModel

    with plain_errors():
        path = None if isinstance(cohort, Manifest) else Path(cohort)
        manifest = cohort if isinstance(cohort, Manifest) else read_manifest(Path(cohort))
        options = RunOptions(
            manifest,
            Path(out),
            _UNTIL_FIT,
            cohort=path,
            config=Path(config) if config is not None else None,
            preset=preset,
            settings=_as_overrides(settings),
            seed=seed,
            device=device,
            jobs=jobs,
        )
        run, _ = run_pipeline(options, lambda: _console(options.out, verbose))
        model = AnomalyModel.load(run.out, run.config, run.device).with_stored_threshold(run.out)
        return model if model.threshold is not None else _with_null_threshold(model, run)


def load_model(
    folder: str | Path,
    *,
    device: str = "auto",
    settings: Settings = (),
) -> "AnomalyModel":
    """Load a fitted model; every file is compared with the model's record first.

    Parameters
    ----------
    folder : str or Path
        Output folder of the run that fitted it, or a copy of its ``encoder``, ``detectors`` and ``records``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``, and ``preprocessing.brain_extraction.command`` for a model whose scans were
        stripped by a program of the site: no model brings a program along.

    Returns
    -------
    AnomalyModel

    Raises
    ------
    UserError
        No model, a damaged or changed one, or settings that differ from those it was fitted with.
    """
    from .model.anomaly_model import AnomalyModel
    from .model.whole_model import require_whole_model

    with plain_errors():
        model, overrides = OutputFolder(Path(folder)), _as_overrides(settings)
        fitted = require_whole_model(model)
        given = read_settings(saved=fitted, overrides=overrides)
        config = given.config
        require_own_commands(config, given.named, model.fitted_config)
        require_settings_of_model(config, with_commands_of(config, fitted.config))
        return AnomalyModel.load(model, config, choose_device(device)).with_stored_threshold(model)


def evaluate(
    maps: str | Path,
    masks: str | Path | None = None,
    *,
    brain_masks: str | Path | None = None,
    cohort: str | Path | None = None,
    healthy: Sequence[str] = (),
    out: str | Path | None = None,
    settings: Settings = (),
    seed: int | None = None,
    jobs: int | None = None,
    verbose: bool = False,
) -> "CohortScores":
    """Evaluate anomaly maps of any method against lesion masks.

    Parameters
    ----------
    maps, masks, brain_masks : str or Path
        Folders, or paths with ``{id}`` in place of the subject's id. Files of a subject are matched by id. Higher
        scores are more anomalous. Without `brain_masks` every voxel of an image counts.
    cohort : str or Path, optional
        A CSV file with `subject_id`, `group`, `site` and `age`.
    healthy : sequence of str
        Ids, or patterns of ids, of healthy subjects: they set the threshold and need no lesion mask.
    out : str or Path, optional
        Folder for ``scores.json`` and the tables; without it nothing is kept.
    settings : mapping or sequence of str, optional
        Settings of ``evaluation``.
    seed : int, optional
        Of the bootstrap.
    jobs : int, optional
        Threads; one per core by default.
    verbose : bool
        Print a line per subject that failed or was left out.

    Returns
    -------
    CohortScores
        ``scores.estimates["auroc"]`` is an estimate with its interval.

    Raises
    ------
    UserError
        Folders whose files cannot be matched, or no map that could be scored.
    """
    from .tools.score_maps import MapFolders, match_subjects, require_own_folder, score_into

    with plain_errors():
        config = load_config(overrides=_as_overrides(settings), seed=seed)
        folders = MapFolders(
            str(maps),
            None if masks is None else str(masks),
            None if brain_masks is None else str(brain_masks),
            None if cohort is None else Path(cohort),
            tuple(healthy),
        )
        matched = match_subjects(folders)
        temporary = tempfile.TemporaryDirectory(prefix="voxout-") if out is None else None
        place = Path(temporary.name if temporary is not None else str(out))
        require_own_folder(place, folders)
        console = Console(None, verbosity=0 if verbose else -1)
        scores, _ = score_into(matched, config.evaluation, place, console, jobs=jobs, seed=config.seed)
        if temporary is not None:
            # The curves of the subjects stay in files, which live as long as the scores.
            weakref.finalize(scores, temporary.cleanup)
        return scores


def compare(*folders: str | Path, seed: int = 0) -> "Comparison":
    """Compare the scores of two or more methods on the same subjects.

    Parameters
    ----------
    folders : str or Path
        Folders that `evaluate` or ``voxout evaluate`` wrote, or the output folders of runs.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Comparison
        Paired differences with bootstrap intervals.

    Raises
    ------
    UserError
        A folder without scores, or scores that cannot be compared.
    """
    from ..evaluation.scoring.compare import compare as compare_scores
    from ..evaluation.scoring.score_folder import ScoreFolder

    with plain_errors():
        return compare_scores([ScoreFolder.open(Path(folder)) for folder in folders], seed=seed)


def _with_null_threshold(model: "AnomalyModel", run: Run) -> "AnomalyModel":
    """Set the threshold on the training controls, as the stage score does."""
    from ..evaluation.scoring.operating_point import StoredPoint
    from .model.null_threshold import null_threshold

    point = null_threshold(run)
    if point is None or not math.isfinite(point.threshold):
        return model
    return replace(model, operating_point=StoredPoint.from_point(point, run.config.evaluation, ""), why_no_threshold="")


def _as_overrides(settings: Settings) -> tuple[str, ...]:
    if isinstance(settings, Mapping):
        return tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    return tuple(settings)


def _console(out: Path, verbose: bool) -> Console:
    make_folder(out)
    return Console(OutputFolder(out).log, verbosity=0 if verbose else -1)


def _inputs(options: RunOptions) -> dict[str, Path]:
    """All files that a run reads, by role."""
    files = {f"{record.key}, {column}": path for record in options.manifest for column, path in record.files.items()}
    files |= {"the manifest": options.cohort} if options.cohort else {}
    return files | ({"the model": options.model} if options.model else {})


def _chosen(manifest: Manifest, subjects: Sequence[str] | None) -> frozenset[str] | None:
    if subjects is None:
        return None
    names = {name.removeprefix("sub-") for given in subjects for name in given.split(",") if name}
    records = [r for r in manifest if r.subject_id in names or r.key.removeprefix("sub-") in names]
    missing = sorted(names - {r.subject_id for r in records} - {r.key.removeprefix("sub-") for r in records})
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"--subjects: {', '.join(missing)} {are} not in the cohort. Use the ids in column subject_id.")
    return frozenset(r.key for r in records)
