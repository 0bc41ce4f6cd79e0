"""Commands of `voxout`: one per stage, `run` for all stages, `apply` for new patients, `evaluate` for any maps.

Heavy libraries are imported only by the commands that need them, so that `--help` is fast.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING

from ...data_manifests.errors import UserError, counted, private, some_of
from ..exit_codes import DONE, SOME_FAILED
from ..workflow.folders import make_folder
from ..workflow.stage_titles import STAGE_TITLES
from ..workflow.standard_streams import write_line
from .arguments import make_parser
from .dicom_commands import dicom, received_scan, require_no_dicom_options
from .model_commands import adapt, adapt_scanner, bundle, certify, matching_stages, model, pack_model
from .program import closing, open_console, run_options, run_program
from .rivals import rivals
from .scan_options import SCAN_OPTIONS, require_usable_scan_options

if TYPE_CHECKING:
    from ...data_manifests.cohort.subject import SubjectRecord
    from ..workflow.runner import Stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    options.asked = f"voxout {options.words[0]}"
    return run_program(_COMMANDS[options.command], options, signals=arguments is None)


def _run(options: argparse.Namespace) -> int:
    if getattr(options, "requeue", False):
        from .requeue import write_script

        write_script(options)
        return DONE
    return _run_on_cohort(options, options.stages)


def _score(options: argparse.Namespace) -> int:
    """Score the maps of a run; with --maps, do what `voxout evaluate` does, which was called so."""
    named = {"--maps": options.maps, "--masks": options.masks, "--brain-masks": options.brain_masks}
    named |= {"--cohort": options.participants, "--healthy": options.healthy, "--out": options.scores}
    given = [name for name, value in named.items() if value]
    if not given and options.cohort is not None and options.out is not None:
        return _run(options)
    if options.cohort is not None or not (options.maps and options.scores):
        found = ", ".join(given + [str(path) for path in (options.cohort, options.out) if path]) or "nothing"
        raise UserError(
            f"score: found {found}, expected COHORT and OUT. For maps of any other method, use `voxout evaluate` with "
            "--maps, --masks and --out, and put quotes around a path with *."
        )
    write_line("note: `voxout score --maps` is now called `voxout evaluate --maps`.", sys.stderr)
    return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    from ..config.config import read_settings
    from ..stages.score import score_lines
    from ..tools.score_maps import MapFolders, match_subjects, require_own_folder, score_into
    from ..tools.score_page import PAGE

    preset = getattr(options, "preset", None)  # `voxout score` has it
    given = read_settings(options.config, preset=preset, overrides=options.set, seed=options.seed)
    folders = MapFolders(options.maps, options.masks, options.brain_masks, options.participants, options.healthy)
    console = open_console(options, None)
    for note in given.notes:
        console.warn(f"note: {note}")
    matched = match_subjects(folders)
    require_own_folder(options.scores, folders)
    if options.dry_run:
        console.say("\n".join([f"would score {counted(len(matched.subjects), 'subject')}", *matched.notes]))
        return DONE
    scores, failures = score_into(
        matched, given.config.evaluation, options.scores, console, jobs=options.jobs, seed=given.config.seed
    )
    for line in score_lines(scores):
        console.say(line, level=-1)
    known = [s for s in scores.subjects if s.truth_known]
    with_lesions, healthy = (sum(getattr(s, name) for s in known) for name in ("has_lesions", "is_healthy"))
    total = len(scores.subjects) + len(failures)
    counts = f"scores of {len(known)} of {counted(total, 'subject')}, {with_lesions} with lesions, {healthy} healthy"
    console.say(f"{counts}: {private(options.scores / 'scores.json', 'scores.json')}", level=-1)
    console.say(f"report: {private(options.scores / PAGE, 'the report')}", level=-1)
    if failures:
        console.warn(
            f"{len(failures)} subject(s) left out of all scores; "
            f"see {private(options.scores / 'failures.csv', 'failures.csv')} for the reasons."
        )
    return SOME_FAILED if failures else DONE


def _compare(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...evaluation.scoring.compare import compare, write_comparison
    from ...evaluation.scoring.in_words import in_words, p_text
    from ...evaluation.scoring.metric_labels import METRICS, is_oracle
    from ...evaluation.scoring.score_folder import ScoreFolder
    from ..stages.score import format_estimate
    from ..workflow.origin import Origin, commit_of_clone
    from ..workflow.records import StageRecord, file_fingerprint, versions
    from ..workflow.removal import remove_building_folder
    from ..workflow.replacement import Replacement

    began, folders = datetime.now(UTC).isoformat(), [ScoreFolder.open(path) for path in options.folders]
    comparison = compare(folders, seed=options.seed)
    make_folder(options.out)
    files = Replacement(OutputFolder(options.out), "compare", (), OutputFolder(options.out).record("compare"))
    files.begin({})
    write_comparison(files.folder, comparison)
    named = zip(comparison.names, folders, strict=True)
    read = {f"scores of {name}": file_fingerprint(folder.file) for name, folder in named}
    origin = Origin("voxout compare", options.seed, commit=commit_of_clone())
    files.finish(StageRecord("compare", read, {}, started=began, versions=versions(), origin=origin.recorded()))
    remove_building_folder(files.out)
    pair = None
    for d in comparison.differences:
        if pair != (d.first, d.second):
            pair = d.first, d.second
            write_line(f"{d.second} minus {d.first}, on {counted(len(comparison.subjects), 'subject')}", sys.stdout)
        label = METRICS[d.metric].label + (" (oracle)" if is_oracle(d.metric) else "")
        values = [estimate.value for estimate in (d.of_second, d.of_first)]
        both = "" if None in values else " minus ".join(f"{value:.3g}" for value in values) + ": "
        p = f", {p_text(d.p_value, d.difference.n)}" if d.p_value is not None else ""
        write_line(f"  {label}: {both}{format_estimate(d.difference)}{p}", sys.stdout)
    for first, second in combinations(comparison.names, 2):
        for sentence in in_words(comparison, first, second):
            write_line(sentence, sys.stdout)
    write_line(f"all scores: {options.out / 'compare.csv'}", sys.stdout)
    if comparison.not_compared:
        names = ", ".join(comparison.not_compared)
        count = len(comparison.not_compared)
        write_line(f"voxout: {count} subject(s) not compared, since not all folders have them: {names}", sys.stderr)
        return SOME_FAILED
    return DONE


def _plan(options: argparse.Namespace) -> int:
    from .plan import print_plan

    print_plan(options)
    return DONE


def _native(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...data_manifests.images.volume import write_labels, write_volume
    from ..tools.result_file import MARK, require_result_place
    from ..tools.to_native import bring_to_native, write_transforms

    out = OutputFolder(options.folder)
    given = [value for value in (options.volume, options.result) if value is not None]
    if len(given) != (0 if options.transforms else 2):
        found = f"--transforms and {counted(len(given), 'path')}" if options.transforms else counted(len(given), "path")
        raise UserError(
            f"voxout native: found {found} after the id, expected VOLUME and RESULT, or --transforms FOLDER."
        )
    if options.transforms:
        for path in write_transforms(out, options.subject, options.transforms, image=options.image):
            write_line(str(path), sys.stdout)
        return DONE
    inputs = {"VOLUME": options.volume} | ({"the image named by --like": options.like} if options.like else {})
    require_result_place(options.result, out, inputs)
    volume = bring_to_native(
        out, options.subject, options.volume, image=options.image, like=options.like, labels=options.labels
    )
    make_folder(options.result.parent)
    write = write_labels if options.labels else write_volume
    try:
        write_line(str(write(options.result, volume, description=MARK)), sys.stdout)
    except FileNotFoundError as error:  # in a folder that exists but accepts no files, such as /proc
        raise UserError(f"{private(options.result)}: cannot be written there. Choose another folder.") from error
    return DONE


def _apply(options: argparse.Namespace) -> int:
    from ..model.unpack import model_to_apply
    from ..stages.order import APPLIED

    if not options.dicom:
        require_no_dicom_options(options)
    with model_to_apply(options.model, options.out, dry_run=options.dry_run) as options.model:
        require_usable_scan_options(options)
        stages = matching_stages(options)
        if not options.dicom:
            return _run_on_cohort(options, APPLIED, stages=stages)
        subject = received_scan(options)
        return DONE if subject is None else _run_on_cohort(options, APPLIED, subject, stages=stages)


def _demo(options: argparse.Namespace) -> int:
    from ..workflow.scratch import at_work_in
    from .demo import make_demo_cohort

    options.preset = options.preset or "demo"
    options.model = None
    if options.dry_run:
        write_line(f"would make a synthetic cohort in {options.out / 'cohort'} and run all stages on it", sys.stdout)
        return DONE
    cohort, options.out = options.out / "cohort", options.out / "run"
    console = open_console(options, options.out)
    with at_work_in(options.out) as scratch:
        options.cohort = make_demo_cohort(cohort, scratch, console)
    code = _run_on_cohort(options, tuple(STAGE_TITLES))
    return pack_model(options.out, options.keep_model) or code if options.keep_model else code


def _run_on_cohort(
    options: argparse.Namespace,
    names: Sequence[str],
    subject: "SubjectRecord | None" = None,
    *,
    stages: "Mapping[str, Stage] | None" = None,
) -> int:
    """Run stages (by default, those of a run) on a cohort, or on one subject."""
    from ...data_manifests.cohort.manifest import read_manifest
    from ...data_manifests.cohort.single_scan import is_scan, require_t1w_name, single_scan
    from ...data_manifests.cohort.subject import Manifest
    from ..run import run_pipeline
    from ..stages.order import STAGES

    of_one_scan = options.model is not None and is_scan(options.cohort) and not options.cohort.is_dir()
    if subject is not None:
        manifest, of_one_scan = Manifest((subject,)), True
    else:
        if of_one_scan:
            require_t1w_name(options.cohort)
            manifest = single_scan(options.cohort, **{name: getattr(options, name) for name in SCAN_OPTIONS})
        else:
            manifest = read_manifest(options.cohort)
        if of_one_scan and not options.quiet:
            # Not in the log, since a file name may hold the name of a person.
            write_line(f"{options.cohort.name} is {next(iter(manifest)).key}", sys.stdout)
    run, failures = run_pipeline(
        run_options(options, manifest, options.model, names, of_one_scan=of_one_scan),
        lambda: open_console(options, options.out),
        stages or STAGES,
    )
    if options.dry_run or (names == ("check",) and not run.applies_a_model):
        from .plan import closing_lines

        for line in closing_lines(run, names):
            run.console.say(line)
    return closing(run, names, failures, options.dry_run)


def _remove(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..dicom.sources import forget_sources
    from ..workflow.earlier_subjects import remove_subjects
    from ..workflow.lock import sole_user
    from ..workflow.ownership import require_own_place

    out = OutputFolder(options.out)
    if not out.root.is_dir():
        raise UserError(
            f"{private(options.out, 'the output folder')}: no such folder, expected the output folder of a run. Check "
            "the path."
        )
    require_own_place(out.root)
    with sole_user(options.out):
        removed = remove_subjects(out, options.subjects)
        forget_sources(out.received, removed.keys)
    console = open_console(options, options.out)
    console.say(
        f"removed {', '.join(removed.keys)}. The scores and the cohort page are updated by the next `voxout run` "
        "or `voxout apply`.",
        level=-1,
    )
    for keys, where in (
        (removed.in_model, "patches/ and the model (encoder/, detectors/)"),
        (removed.in_patches, "patches/"),
    ):
        if keys:
            console.warn(
                f"{some_of(keys)}: {where} were made of all controls and still hold its data. To make them without it, "
                "take it out of the cohort and run `voxout run COHORT OUT`."
            )
    if removed.set_aside:
        console.warn(f"changed since voxout wrote them, and kept in set-aside/: {some_of(removed.set_aside)}")
    return DONE


def _status(options: argparse.Namespace) -> int:
    from .status import print_status

    print_status(options.out, as_table=options.table)
    return DONE


def _describe(options: argparse.Namespace) -> int:
    from ..provenance.describe import describe

    found = describe(options.path)
    write_line(found.as_json() if options.json else found.as_text(), sys.stdout)
    return DONE


_COMMANDS = {
    "run": _run,
    "plan": _plan,
    "score": _score,
    "evaluate": _evaluate,
    "compare": _compare,
    "native": _native,
    "rivals": rivals,
    "apply": _apply,
    "adapt-scanner": adapt_scanner,
    "adapt": adapt,
    "certify": certify,
    "model": model,
    "bundle": bundle,
    "dicom": dicom,
    "remove": _remove,
    "status": _status,
    "describe": _describe,
    "demo": _demo,
}
