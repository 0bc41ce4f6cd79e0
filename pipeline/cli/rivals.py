"""The command that compares voxout with other methods."""

import argparse
from pathlib import Path

from ...data_manifests.errors import UserError, private
from ..exit_codes import DONE, SOME_FAILED
from ..workflow.stage_titles import STAGE_TITLES
from .program import open_console, run_options


def rivals(options: argparse.Namespace) -> int:
    """Run the stages of a cohort if one is given, then the methods; compare them."""
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..rivals.cohort import SettingChanges
    from ..rivals.run import RivalsOptions, closing_lines, compare_rivals
    from ..workflow.device import choose_device
    from ..workflow.scratch import at_work_in

    given = [Path(path) for path in options.paths]
    if len(given) > 2:
        raise UserError(f"rivals: found {len(given)} paths, expected OUT, or COHORT and OUT.")
    options.out = given[-1]
    code = DONE
    if len(given) == 2:
        code = _run_stages(options, given[0])
        if code not in (DONE, SOME_FAILED) or options.dry_run:
            return code
    out = OutputFolder(options.out)
    asked = RivalsOptions(
        tuple(options.methods),
        options.preset,
        options.lesions,
        choose_device(options.device),
        options.jobs,
        SettingChanges(options.config, tuple(options.set), options.seed),
        options.encoder_weights,
    )
    if options.dry_run:
        from ..rivals.run import would_do

        for line in would_do(out, asked):
            open_console(options, None).say(line)
        return DONE
    if not out.config.is_file():
        where = private(options.out, "the output folder")
        raise UserError(f"rivals: found no run in {where}, expected its output folder. Name COHORT and OUT.")
    console = open_console(options, options.out)
    with at_work_in(options.out):
        compared = compare_rivals(out, asked, console)
    for line in closing_lines(compared):
        console.say(line, level=-1)
    return SOME_FAILED if compared.failures else code


def _run_stages(options: argparse.Namespace, cohort: Path) -> int:
    from ...data_manifests.cohort.manifest import read_manifest
    from ..run import run_pipeline

    stages = tuple(STAGE_TITLES)
    options.cohort, of_methods, options.preset = cohort, options.preset, options.run_preset
    try:
        wanted = run_options(options, read_manifest(cohort), None, stages)
    finally:
        options.preset = of_methods
    _, failures = run_pipeline(wanted, lambda: open_console(options, options.out))
    return SOME_FAILED if failures else DONE
