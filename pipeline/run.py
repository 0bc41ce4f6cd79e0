"""A run of stages over a cohort: the settings are resolved, the folders checked, the stages brought up to date."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import Manifest
from ..data_manifests.errors import Failure, UserError, private
from ..data_manifests.user_paths import real
from .cluster.choice import ClusterChoice
from .config.cluster_settings import ClusterSettings
from .config.config import (
    Config,
    GivenSettings,
    config_text,
    names_only_cluster,
    read_settings,
    require_settings_of_model,
)
from .config.own_commands import require_own_commands, with_commands_of
from .stages.order import STAGES
from .tools.plan import Heads, plan_run
from .tools.plan_of_jobs import memory_shortage, subjects_at_once
from .workflow.console import Console
from .workflow.device import choose_devices, require_one_command
from .workflow.engine import Engine
from .workflow.origin import Origin
from .workflow.ownership import require_apart, require_own_place
from .workflow.runner import Run, Stage, require_current, require_own_model, run_stages, save_own
from .workflow.scratch import SCRATCH, at_work_in

_TORCH_STAGES = frozenset({"train", "fit", "map"})


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
        See `choose_devices`.
    jobs : int or None
        Subjects worked on at once; None: one per core.
    cluster : str
        Where subjects are worked on: ``"local"``, or the name of a queueing system.
    scheduler : str or None
        Address of a running Dask scheduler, in place of `cluster`.
    subjects : sequence of str or None
        Work on these only.
    reference_runs : sequence of (name, path)
        Runs whose figures the report shows next to its own.
    dry_run : bool
    prepares_only : bool
        Whether the scans are prepared for a later call, so that no controls are needed.
    command : str
        The command that asks, for the records, as ``"voxout run"``.
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
    cluster: str = "local"
    scheduler: str | None = None
    subjects: Sequence[str] | None = None
    reference_runs: Sequence[tuple[str, Path]] = ()
    dry_run: bool = False
    prepares_only: bool = False
    command: str = ""

    @property
    def saved_settings(self) -> Path:
        """Settings of the model, or of earlier calls on the output folder."""
        return OutputFolder(self.model).fitted_config if self.model else OutputFolder(self.out).config

    @property
    def resumes(self) -> bool:
        """Whether the saved settings apply: those of a run apply to every later command, until others are given."""
        others = self.preset is not None or (self.config is not None and not names_only_cluster(self.config))
        return not others and self.saved_settings.is_file()


def run_pipeline(
    options: RunOptions, open_console: Callable[[], Console], stages: Mapping[str, Stage] = STAGES
) -> tuple[Run, tuple[Failure, ...]]:
    """Bring the stages of a run up to date, in order.

    Parameters
    ----------
    options : RunOptions
    open_console : callable
        Called once the folders are known to be usable.
    stages : mapping from name to Stage

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
    require_one_command(os.environ)
    given = settings_of_run(options)
    require_own_place(options.out)
    dataset = options.cohort if options.cohort is not None and options.cohort.is_dir() else None
    require_apart(options.out, _inputs(options), dataset)
    chosen = _chosen(options.manifest, options.subjects)
    cluster = ClusterChoice(options.cluster, options.scheduler, given.cluster)
    console = open_console()
    for note in (*given.notes, *_without_effect(given.config)):
        console.warn(f"note: {note}")
    if options.resumes:
        saved = f"loaded from {private(options.saved_settings, 'the saved settings')}"
        console.say(f"settings: {saved if options.model is None else 'those of the model'}")
    with nullcontext() if options.dry_run else at_work_in(options.out), _engine(options, cluster) as engine:
        devices = choose_devices(options.device) if _TORCH_STAGES & set(options.stages) else ("cpu",)
        run = Run(
            manifest=options.manifest,
            config=given.config,
            out=out,
            model=model or out,
            chosen=chosen,
            engine=engine,
            device=devices[0],
            device_of_workers=options.device.split(",")[0] if cluster.is_remote else None,
            console=console,
            training_devices=devices,
            reference_runs=tuple(options.reference_runs),
            prepares_only=options.prepares_only,
            origin=Origin.of(options.command, given.config),
            cluster=given.cluster if cluster.has_queue else None,
        )
        if run.cluster is not None and not options.dry_run:
            _warn_of_small_jobs(run, run.cluster, options.stages)
        if len(options.stages) == 1:
            require_own_model(stages[options.stages[0]], run)
            require_current(stages[options.stages[0]], stages, run)
        with _saved_settings(run, dry_run=options.dry_run):
            return run, run_stages(options.stages, stages, run, dry_run=options.dry_run)


def _engine(options: RunOptions, cluster: ClusterChoice) -> Engine:
    return Engine(options.jobs, start_cluster=cluster.start) if cluster.is_remote else Engine(options.jobs)


def _without_effect(config: Config) -> tuple[str, ...]:
    """Return notes about settings that change nothing beside the others."""
    ensemble = config.models.ensemble
    if ensemble.members == 1 or ensemble.needs_encoder:
        return ()
    return (
        f"{ensemble.members} seeds give the same map as one here: no scorer uses an encoder "
        f"({', '.join(ensemble.scorers)}), and only encoders are trained once per seed",
    )


def settings_of_run(options: RunOptions) -> GivenSettings:
    """Resolve the settings of a run.

    Raises
    ------
    UserError
        They cannot be used, or differ from those of the model.
    """
    saved = read_settings(options.saved_settings, saved_file=True) if options.model or options.resumes else None
    given = read_settings(
        options.config,
        saved=saved if options.resumes else None,
        preset=options.preset,
        overrides=options.settings,
        seed=options.seed,
        seeds=options.seeds,
    )
    if "prepare" in options.stages:
        require_own_commands(given.config, given.named, options.saved_settings)
    if options.model and saved:
        require_settings_of_model(given.config, with_commands_of(given.config, saved.config))
    return given


@contextmanager
def _saved_settings(run: Run, *, dry_run: bool) -> Iterator[None]:
    """Save the settings of a run in its folder; put back the earlier ones if a stage refuses them."""
    if dry_run:
        yield
        return
    path = run.out.config
    before = path.read_bytes() if path.is_file() else None
    save_own(run, path, config_text(run.config).encode())
    try:
        yield
    except UserError:
        save_own(run, path, before)
        raise


def _warn_of_small_jobs(run: Run, cluster: ClusterSettings, names: Sequence[str]) -> None:
    """Say before anything begins that the jobs of a cluster get too little memory for some of the stages."""
    stages = plan_run(Heads.to_map(run.manifest), run.config, jobs=1, cores=1, on_nodes=subjects_at_once(cluster))
    if shortage := memory_shortage([stage for stage in stages if stage.stage in names], cluster):
        run.console.warn(f"warning: {shortage}")


def _inputs(options: RunOptions) -> dict[str, Path]:
    """All files that a run reads, by role, but those that voxout put into the output folder itself."""
    files = {f"{record.key}, {column}": path for record in options.manifest for column, path in record.files.items()}
    received = real(OutputFolder(options.out).received)
    files = {what: path for what, path in files.items() if not real(path).is_relative_to(received)}
    files |= {"the manifest": options.cohort} if options.cohort else {}
    # A packed model is unpacked among the temporary files of the output folder.
    if options.model is None or real(options.model).is_relative_to(real(options.out / SCRATCH)):
        return files
    return files | {"the model": options.model}


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
