"""Levels of analysis of the BIDS-App: what a run does for single participants, and for the group."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...data_manifests.cohort.bids import read_bids
from ...data_manifests.cohort.bids_selection import BidsSelection
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest
from ...data_manifests.errors import Failure, UserError, private, some_of
from ...data_manifests.user_paths import real
from ..run import RunOptions, run_pipeline, settings_of_run
from ..stages.order import APPLIED
from ..tools.plan import Heads
from ..tools.plan_of_jobs import jobs_within
from ..workflow.console import Console
from ..workflow.engine import usable_cores
from ..workflow.lock import sole_user
from ..workflow.ownership import claim
from ..workflow.records import StageRecord
from ..workflow.runner import Run
from ..workflow.stage_titles import STAGE_TITLES
from .dataset import describe_dataset, require_place_of_derivatives
from .derivatives import write_derivatives

AnalysisLevel = Literal["participant", "group"]
_PATIENCE_S = 600.0
"""How long to wait for another call that writes to the same derivatives."""


@dataclass(frozen=True)
class BidsCall:
    """A call of the BIDS-App.

    Attributes
    ----------
    dataset : Path
        BIDS dataset of raw scans; only read.
    derivatives : Path
        Folder for the results.
    level : {"participant", "group"}
    selection : BidsSelection
        Participants, sessions and scans.
    reports_only : bool
        Write only pages, from the results that are there.
    memory_gb : float or None
        Participants are processed at the same time as far as this is enough for.
    """

    dataset: Path
    derivatives: Path
    level: AnalysisLevel
    selection: BidsSelection
    reports_only: bool = False
    memory_gb: float | None = None

    def stages(self, *, applies: bool) -> tuple[str, ...]:
        """Return the stages of the level, with a given model or without."""
        if self.reports_only:
            return ("report",)
        if applies:
            return APPLIED
        return tuple(STAGE_TITLES) if self.level == "group" else ("check", "prepare")


def run_level(
    call: BidsCall, options: RunOptions, open_console: Callable[[], Console]
) -> tuple[Run, tuple[Failure, ...]]:
    """Run a level of analysis and write its results as a BIDS derivative dataset.

    The level participant applies a given model, or prepares the scans. The level group fits a model to the controls and
    maps the others, or scores the maps of a given model; it works on what the level participant has done.

    Parameters
    ----------
    call : BidsCall
    options : RunOptions
        `out` is the folder for intermediate results. `manifest`, `cohort` and `stages` are not used.
    open_console : callable
        As for `run_pipeline`.

    Returns
    -------
    As `run_pipeline`.

    Raises
    ------
    UserError
        A dataset, folder, selection or setting that cannot be used; the level group before the level participant.
    """
    applies, alone = options.model is not None, call.level == "participant"
    options = replace(
        options,
        cohort=call.dataset,
        stages=call.stages(applies=applies),
        prepares_only=alone and not applies and not call.reports_only,
    )
    selection = replace(
        call.selection,
        one_scan_of=settings_of_run(options).config.preprocessing.modalities,
        # Only a fit needs to know who is healthy.
        unknown_group="patient" if applies or alone else None,
    )
    manifest = read_bids(call.dataset, selection)
    if not alone:
        manifest = _done_by_participant_level(manifest, OutputFolder(options.out), applies=applies)
    files = {f"{record.key}, {column}": path for record in manifest for column, path in record.files.items()}
    require_place_of_derivatives(call.derivatives, files, call.dataset)
    if real(call.derivatives).is_relative_to(real(options.out)):
        raise UserError(
            f"{private(call.derivatives, 'the output folder')}: lies in the folder of intermediate results, expected "
            "two separate folders. Choose another --work-dir."
        )
    options = replace(options, manifest=manifest)
    if call.memory_gb is not None:
        options = _within(call.memory_gb, options)
    run, failures = run_pipeline(options, open_console)
    if not options.dry_run:
        claim(call.derivatives)
        with sole_user(call.derivatives, patience_s=_PATIENCE_S):
            describe_dataset(call.derivatives, options.out)
            write_derivatives(call.derivatives, run.out, manifest)
        run.console.say(f"derivatives: {private(call.derivatives, 'the derivatives')}", level=-1)
    return run, failures


def _within(memory_gb: float, options: RunOptions) -> RunOptions:
    """Process so few participants at the same time that the memory is enough; say so where it is not."""
    manifest, config = options.manifest, settings_of_run(options).config
    heads = Heads.of_cohort(manifest, config) if "fit" in options.stages else Heads.to_map(manifest)
    jobs, need = jobs_within(memory_gb, heads, config, options.stages, options.jobs or usable_cores())
    if need > memory_gb:
        note = (
            f"--mem {memory_gb:g}: about {need:.1f} GB are needed even with one scan at a time, which is tried. Give "
            "the job more memory"
        )
        manifest = replace(manifest, notes=(*manifest.notes, note))
    return replace(options, jobs=jobs, manifest=manifest)


def _done_by_participant_level(manifest: Manifest, run: OutputFolder, *, applies: bool) -> Manifest:
    """Return the subjects that the level participant has mapped or, without a given model, prepared."""
    what, record_of = ("mapped", run.map_record) if applies else ("prepared", run.subject_record)
    done = tuple(subject for subject in manifest if StageRecord.read(record_of(subject)) is not None)
    if not done:
        raise UserError(
            f"group: found no {what} scan in {private(run.root, 'the work folder')}, expected those of the level "
            "participant. Run `voxout-bids BIDS OUT participant` first, with the same --work-dir and --model."
        )
    left_out = [subject.key for subject in manifest if subject not in done]
    notes = (f"left out of the group, not {what} by the level participant: {some_of(left_out)}.",) if left_out else ()
    return Manifest(done, (*manifest.notes, *notes))
