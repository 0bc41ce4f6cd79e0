"""The command line: one subcommand a stage, `run` for all of them, `apply` for new patients, `demo` with no input.

Nothing heavy is imported before a command needs it: `--help` has to answer at once.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ...data_manifests.errors import Failure, UserError, private
from ..workflow.stage_titles import STAGE_TITLES
from .arguments import make_parser
from .program import DONE, SOME_FAILED, make_folder, open_console, run_program

if TYPE_CHECKING:
    from ...data_manifests.cohort.subject import Manifest
    from ..workflow.runner import Run

_TORCH_STAGES = {"train", "fit", "map"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = make_parser().parse_args(arguments)
    return run_program(_COMMANDS[options.command], options, signals=arguments is None)


def _run(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder

    return _work(options, options.stages, saved=OutputFolder(options.out).config)


def _score(options: argparse.Namespace) -> int:
    """The stage of a run, or anybody's maps."""
    named = {"--maps": options.maps, "--out": options.scores}
    alone = {"--masks": options.masks, "--brain-masks": options.brain_masks}
    alone |= {"--cohort": options.participants, "--healthy": options.healthy}
    given = [name for name, value in (named | alone).items() if value]
    if not given and options.cohort is not None and options.out is not None:
        return _run(options)
    missing = [name for name, value in named.items() if not value]
    if options.cohort is not None or missing:
        found = ", ".join(given + [str(path) for path in (options.cohort, options.out) if path]) or "nothing"
        raise UserError(
            f"score: found {found}, expected either COHORT and OUT (a run's own maps) or --maps, --masks and --out "
            "(anybody's). See `voxout score --help`; a path with * needs quotes, or the shell resolves it."
        )
    return _score_maps(options)


def _score_maps(options: argparse.Namespace) -> int:
    from ..config.config import load_config, notes_on_names
    from ..stages.assessment import figures_in_words
    from ..tools.score_maps import MapFolders, match_subjects, require_own_folder, score_folders
    from ..workflow.engine import usable_cores
    from ..workflow.lock import sole_user

    config = load_config(options.config, preset=options.preset, overrides=options.set, seed=options.seed)
    folders = MapFolders(options.maps, options.masks, options.brain_masks, options.participants, options.healthy)
    console = open_console(options, None)
    for note in notes_on_names(options.config, options.set):
        console.warn(f"note: {note}")
    matched = match_subjects(folders)
    require_own_folder(options.scores, folders)
    if options.dry_run:
        console.say("\n".join([f"would score {len(matched.subjects)} subjects", *matched.notes]))
        return DONE
    make_folder(options.scores)
    with sole_user(options.scores):
        scores, failures = score_folders(
            matched, config.evaluation, options.scores, console, jobs=options.jobs or usable_cores(), seed=config.seed
        )
    for line in figures_in_words(scores):
        console.say(line, level=-1)
    counted = [s for s in scores.subjects if s.truth_known]
    sick, healthy = (sum(getattr(s, name) for s in counted) for name in ("has_lesions", "is_healthy"))
    total = len(scores.subjects) + len(failures)
    messages = f"figures of {len(counted)} of {total} subjects, {sick} with lesions, {healthy} healthy"
    console.say(f"{messages}: {private(options.scores / 'scores.json', 'scores.json')}", level=-1)
    if failures:
        console.warn(
            f"{len(failures)} subject(s) left out of all figures; "
            f"{private(options.scores / 'failures.csv', 'failures.csv')} says why."
        )
    return SOME_FAILED if failures else DONE


def _compare(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...evaluation.scoring.compare import compare, write_comparison
    from ...evaluation.scoring.metric_labels import METRICS, is_oracle
    from ...evaluation.scoring.score_folder import ScoreFolder
    from ..stages.assessment import in_words
    from ..workflow.records import StageRecord
    from ..workflow.replacement import Replacement, remove_building_folder

    comparison = compare([ScoreFolder.open(path) for path in options.folders], seed=options.seed)
    make_folder(options.out)
    files = Replacement(OutputFolder(options.out), "compare", (), OutputFolder(options.out).record("compare"))
    files.begin({})
    write_comparison(files.folder, comparison)
    files.finish(StageRecord("compare", {}, {}))
    remove_building_folder(files.out)
    pair = None
    for d in comparison.differences:
        if pair != (d.first, d.second):
            pair = d.first, d.second
            print(f"{d.second} less {d.first}, on {len(comparison.subjects)} subjects")
        label = METRICS[d.metric].label + (" (oracle)" if is_oracle(d.metric) else "")
        values = [estimate.value for estimate in (d.of_second, d.of_first)]
        both = "" if None in values else " less ".join(f"{value:.3g}" for value in values) + ": "
        print(f"  {label}: {both}{in_words(d.difference, comparison.settings.confidence)}")
    print(f"all figures: {options.out / 'compare.csv'}")
    if comparison.not_compared:
        names = ", ".join(comparison.not_compared)
        print(f"voxout: {len(comparison.not_compared)} subject(s) not scored by all: {names}", file=sys.stderr)
        return SOME_FAILED
    return DONE


def _native(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...data_manifests.images.volume import write_labels, write_volume
    from ..tools.result_file import MARK, require_result_place
    from ..tools.to_native import bring_to_native

    out = OutputFolder(options.folder)
    inputs = {"VOLUME": options.volume} | ({"the image named by --like": options.like} if options.like else {})
    require_result_place(options.result, out, inputs)
    volume = bring_to_native(
        out, options.subject, options.volume, image=options.image, like=options.like, labels=options.labels
    )
    make_folder(options.result.parent)
    write = write_labels if options.labels else write_volume
    try:
        print(write(options.result, volume, description=MARK))
    except FileNotFoundError as error:  # of a folder that is there and takes no files, such as /proc
        raise UserError(f"{private(options.result)}: cannot be written there. Choose another folder.") from error
    return DONE


def _apply(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...data_manifests.user_paths import real
    from ..stages.registry import APPLIED
    from ..stages.whole_model import require_whole_model

    model = OutputFolder(options.model)
    require_whole_model(model)
    if real(options.out).is_relative_to(real(options.model)):
        raise UserError(
            f"{private(options.out, 'the output folder')}: lies in the model's own folder, expected one apart from "
            "it. Name another folder for the new subjects."
        )
    return _work(options, APPLIED, saved=model.fitted_config)


def _demo(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from .demo import make_demo_cohort

    options.preset = options.preset or "demo"
    options.model = None
    if options.dry_run:
        print(f"would make a synthetic cohort in {options.out / 'cohort'} and run all stages on it")
        return DONE
    options.cohort = make_demo_cohort(options.out / "cohort", open_console(options, options.out / "run"))
    options.out = options.out / "run"
    return _work(options, tuple(STAGE_TITLES), saved=OutputFolder(options.out).config)


def _work(options: argparse.Namespace, names: Sequence[str], saved: Path) -> int:
    from ...data_manifests.cohort.manifest import read_manifest
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..config.config import (
        load_config,
        named_settings,
        notes_on_names,
        require_settings_of_model,
        save_config,
    )
    from ..config.own_commands import require_own_commands, with_commands_of
    from ..stages.registry import STAGES
    from ..workflow.engine import Engine
    from ..workflow.replacement import require_apart, require_own_place
    from ..workflow.runner import Run, require_current, run_stages
    from ..workflow.scratch import at_work_in

    manifest = read_manifest(options.cohort)
    # A run's own settings hold for every later command on its folder, until others are named.
    go_on = options.config is None and options.preset is None and saved.is_file()
    config = load_config(
        saved if go_on else options.config,
        preset=options.preset,
        overrides=options.set,
        seed=options.seed,
        seeds=options.seeds,
    )
    if "prepare" in names:
        require_own_commands(config, named_settings(options.config, options.set), saved)
    if options.model:
        require_settings_of_model(config, with_commands_of(config, load_config(saved)))
    out = OutputFolder(options.out)
    require_own_place(options.out)
    require_apart(options.out, _inputs(options, manifest), options.cohort if options.cohort.is_dir() else None)
    console = open_console(options, options.out)
    for note in notes_on_names(options.config, options.set):
        console.warn(f"note: {note}")
    if go_on:
        console.say(f"settings: as saved in {private(saved, 'the saved settings')}")
    with nullcontext() if options.dry_run else at_work_in(options.out), Engine(options.jobs) as engine:
        run = Run(
            manifest=manifest,
            config=config,
            out=out,
            model=OutputFolder(options.model) if options.model else out,
            chosen=_chosen(manifest, getattr(options, "subjects", None)),
            engine=engine,
            device=_device(options.device) if _TORCH_STAGES & set(names) else "cpu",
            console=console,
            reference_runs=tuple(getattr(options, "runs", ())),
        )
        if len(names) == 1:
            require_current(STAGES[names[0]], STAGES, run)
        before = load_config(out.config) if out.config.is_file() else None
        if not options.dry_run:
            save_config(out.config, config)
        try:
            failures = run_stages([STAGES[name] for name in names], run, dry_run=options.dry_run)
        except UserError:
            # What was refused must not become the folder's settings.
            if before is not None:
                save_config(out.config, before)
            else:
                out.config.unlink(missing_ok=True)
            raise
    return _closing(run, names, failures, options.dry_run)


def _inputs(options: argparse.Namespace, manifest: "Manifest") -> dict[str, Path]:
    """All that a run reads, by what it is."""
    files = {f"{record.key}, {column}": path for record in manifest for column, path in record.files.items()}
    return files | {"the manifest": options.cohort} | ({"the model": options.model} if options.model else {})


def _remove(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..workflow.earlier_subjects import remove_subjects
    from ..workflow.lock import sole_user

    out = OutputFolder(options.out)
    if not out.root.is_dir():
        raise UserError(
            f"{private(options.out, 'the output folder')}: no such folder, expected the output folder of a run. Check "
            "the path."
        )
    with sole_user(options.out):
        removed = remove_subjects(out, options.subjects)
    open_console(options, options.out).say(
        f"removed {', '.join(removed)}. The figures and the cohort's page change with the next `voxout run` or "
        "`voxout apply`.",
        level=-1,
    )
    return DONE


def _closing(run: "Run", names: Sequence[str], failures: Sequence[Failure], dry_run: bool) -> int:
    if not dry_run and "report" in names:
        from ..stages.assessment import figures_in_words, load_scores

        for line in figures_in_words(load_scores(run)):
            run.console.say(line, level=-1)
        run.console.say(f"report: {private(run.out.report, 'the report')}", level=-1)
    if failures:
        run.console.warn(f"{len(failures)} subject(s) failed; {private(run.out.failures, 'failures.csv')} says why.")
        return SOME_FAILED
    return DONE


def _chosen(manifest: "Manifest", subjects: Sequence[str] | None) -> frozenset[str] | None:
    if subjects is None:
        return None
    names = {name.removeprefix("sub-") for given in subjects for name in given.split(",") if name}
    records = [r for r in manifest if r.subject_id in names or r.key.removeprefix("sub-") in names]
    missing = sorted(names - {r.subject_id for r in records} - {r.key.removeprefix("sub-") for r in records})
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"--subjects: {', '.join(missing)} {are} not in the cohort. Known are ids as in column subject_id."
        )
    return frozenset(r.key for r in records)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Some devices of torch take numbers and never give one back.
        right = float((torch.arange(4.0, device=name) @ torch.ones(4, device=name)).cpu()) == 6
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({words}). Try cpu.") from error
    if not right:
        raise UserError(f"--device {name}: not usable here (0 + 1 + 2 + 3 is not 6 on it). Try cpu.")
    return name


_COMMANDS = {
    "run": _run,
    "score": _score,
    "compare": _compare,
    "native": _native,
    "apply": _apply,
    "remove": _remove,
    "demo": _demo,
}
