"""The command line: one subcommand a stage, `run` for all of them, `apply` for new patients, `demo` with no input,
`benchmark` for the method's other proving ground.

Nothing heavy is imported before a command needs it: `--help` has to answer at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..data_manifests.errors import Failure, UserError, for_terminal
from .arguments import make_parser
from .titles import STAGE_TITLES

if TYPE_CHECKING:
    from ..data_manifests.subject import Manifest
    from .run import Run

_TORCH_STAGES = {"train", "fit", "map"}
DONE, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # Third-party notices about other people's deprecations are no use to whoever waits for a map.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    options = make_parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        for problem in error.problems:
            print(f"voxout: {for_terminal(problem)}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:
        # Whoever read our lines has gone (as in `| head`). Nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except KeyboardInterrupt:
        print("voxout: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from ..data_manifests.derivatives import OutputFolder

    return _work(options, options.stages, saved=OutputFolder(options.out).config)


def _score(options: argparse.Namespace) -> int:
    """The stage of a run, or anybody's maps."""
    named = {"--maps": options.maps, "--out": options.scores}
    alone = {"--masks": options.masks, "--brain-masks": options.brain_masks}
    alone |= {"--cohort": options.people, "--healthy": options.healthy}
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
    from .assessment import figures_in_words
    from .config import load_config
    from .engine import usable_cores
    from .map_scoring import MapFolders, match_subjects, require_own_folder, score_folders
    from .run import sole_user

    config = load_config(options.config, preset=options.preset, overrides=options.set, seed=options.seed)
    folders = MapFolders(options.maps, options.masks, options.brain_masks, options.people, options.healthy)
    console = _console(options, None)
    matched = match_subjects(folders)
    require_own_folder(options.scores, folders)
    if options.dry_run:
        console.say("\n".join([f"would score {len(matched.subjects)} subjects", *matched.notes]))
        return DONE
    _make_folder(options.scores)
    with sole_user(options.scores):
        scores, failures = score_folders(
            matched, config.evaluation, options.scores, console, jobs=options.jobs or usable_cores(), seed=config.seed
        )
    for line in figures_in_words(scores):
        console.say(line, level=-1)
    counted = [s for s in scores.subjects if s.truth_known]
    sick, healthy = (sum(getattr(s, name) for s in counted) for name in ("has_lesions", "is_healthy"))
    total = len(scores.subjects) + len(failures)
    told = f"figures of {len(counted)} of {total} subjects, {sick} with lesions, {healthy} healthy"
    console.say(f"{told}: {options.scores / 'scores.json'}", level=-1)
    if failures:
        console.warn(f"{len(failures)} subject(s) left out of all figures; {options.scores / 'failures.csv'} says why.")
    return SOME_FAILED if failures else DONE


def _compare(options: argparse.Namespace) -> int:
    from ..evaluation.compare import compare, write_comparison
    from ..evaluation.metric_words import METRICS, is_oracle
    from ..evaluation.score_folder import ScoreFolder
    from .assessment import in_words

    comparison = compare([ScoreFolder.open(path) for path in options.folders], seed=options.seed)
    _make_folder(options.out)
    write_comparison(options.out, comparison)
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
    from ..data_manifests.derivatives import OutputFolder
    from ..data_manifests.volume import write_volume
    from .native import bring_to_native

    volume = bring_to_native(
        OutputFolder(options.folder),
        options.subject,
        options.volume,
        image=options.image,
        like=options.like,
        labels=options.labels,
    )
    if not options.result.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{options.result}: expected a name that ends in .nii or .nii.gz. Rename the result.")
    _make_folder(options.result.parent)
    print(write_volume(options.result, volume))
    return DONE


def _apply(options: argparse.Namespace) -> int:
    from ..data_manifests.derivatives import OutputFolder
    from .stages import APPLIED
    from .whole_model import require_whole_model

    model = OutputFolder(options.model)
    require_whole_model(model)
    if options.model.resolve() == options.out.resolve():
        raise UserError(f"{options.out}: is the model's own folder. Name another folder for the new subjects.")
    return _work(options, APPLIED, saved=model.fitted_config)


def _demo(options: argparse.Namespace) -> int:
    from ..data_manifests.derivatives import OutputFolder
    from .demo import make_demo_cohort

    options.preset = options.preset or "demo"
    options.model = None
    if options.dry_run:
        print(f"would make a synthetic cohort in {options.out / 'cohort'} and run all stages on it")
        return DONE
    options.cohort = make_demo_cohort(options.out / "cohort", _console(options, options.out / "run"))
    options.out = options.out / "run"
    return _work(options, tuple(STAGE_TITLES), saved=OutputFolder(options.out).config)


def _mnist_c(options: argparse.Namespace) -> int:
    # As many threads as trainings would only wait for each other; read once, when the libraries are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from .mnist_c.command import benchmark

    failures = benchmark(
        options.out,
        _console(options, options.out),
        data=options.data,
        digits=options.digits,
        seeds=options.seeds,
        methods=options.methods,
        jobs=options.jobs,
    )
    return SOME_FAILED if failures else DONE


def _work(options: argparse.Namespace, names: Sequence[str], saved: Path) -> int:
    from ..data_manifests.derivatives import OutputFolder
    from ..data_manifests.manifest import read_manifest
    from .config import load_config, require_settings_of_model, save_config
    from .engine import Engine
    from .run import Run, require_current, run_stages, sole_user
    from .stages import STAGES

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
    if options.model:
        require_settings_of_model(config, load_config(saved))
    out = OutputFolder(options.out)
    console = _console(options, options.out)
    if go_on:
        console.say(f"settings: as saved in {saved}")
    with nullcontext() if options.dry_run else sole_user(options.out), Engine(options.jobs) as engine:
        run = Run(
            manifest=manifest,
            config=config,
            out=out,
            model=OutputFolder(options.model) if options.model else out,
            chosen=_chosen(manifest, getattr(options, "subjects", None)),
            engine=engine,
            device=_device(options.device) if _TORCH_STAGES & set(names) else "cpu",
            console=console,
            beside=tuple(getattr(options, "runs", ())),
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


def _closing(run: "Run", names: Sequence[str], failures: Sequence[Failure], dry_run: bool) -> int:
    if not dry_run and "report" in names:
        from .assessment import figures_in_words, load_scores

        for line in figures_in_words(load_scores(run)):
            run.console.say(line, level=-1)
        run.console.say(f"report: {run.out.report}", level=-1)
    if failures:
        run.console.warn(f"{len(failures)} subject(s) failed; {run.out.failures} says why.")
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


def _console(options: argparse.Namespace, out: Path | None):
    from ..data_manifests.derivatives import OutputFolder
    from .console import Console

    log = None
    if out is not None and not options.dry_run:
        _make_folder(out)
        log = OutputFolder(out).log
    return Console(log, verbosity=-1 if options.quiet else int(options.verbose))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}). Choose another output folder.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: is not writable. Choose another folder for the output.")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]}). Try cpu.") from error
    return name


_COMMANDS = {
    "run": _run,
    "score": _score,
    "compare": _compare,
    "native": _native,
    "apply": _apply,
    "demo": _demo,
    "mnist_c": _mnist_c,
}


if __name__ == "__main__":
    sys.exit(main())
