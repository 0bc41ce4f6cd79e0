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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..data_manifests.errors import Failure, UserError
from .titles import STAGE_TITLES

if TYPE_CHECKING:
    from ..data_manifests.subject import Manifest
    from .run import Run

_TORCH_STAGES = {"train", "fit", "map"}
DONE, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130

_EXAMPLES = """\
examples:
  voxout demo                            everything on a synthetic cohort, no input needed
  voxout check cohort.csv out            is my data in order?
  voxout run cohort.csv out              scans in, report out (out/report/index.html)
  voxout run cohort.csv out --set models.detector.nu=0.05
  voxout apply out new.csv new-out       map new patients with the model of an earlier run
  voxout benchmark mnist-c out           the method against others on handwritten digits, no input needed

exit codes: 0 done; 1 a bug in voxout; 2 something to mend in the call or the data; 3 done, but some subjects
failed (failures.csv names each, with its reason)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # Third-party notices about other people's deprecations are no use to whoever waits for a map.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except UserError as error:
        for problem in error.problems:
            print(f"voxout: {problem}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("voxout: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voxout",
        description="Voxel-wise outlier maps: what in a patient's brain scan does not fit a lab's healthy ones.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"voxout {metadata.version('voxout')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="do all stages: scans in, report out")
    _add_cohort(run)
    run.set_defaults(command=_run, stages=tuple(STAGE_TITLES), model=None)
    for name, title in STAGE_TITLES.items():
        stage = commands.add_parser(name, help=title, description=f"{title[0].upper()}{title[1:]}.")
        _add_cohort(stage)
        if name in ("prepare", "map"):
            stage.add_argument("--subjects", nargs="+", metavar="ID", help="only these subjects; the others later")
        stage.set_defaults(command=_run, stages=(name,), model=None)
    apply = commands.add_parser("apply", help="map new subjects with the model of an earlier run")
    apply.add_argument("model", type=Path, metavar="MODEL", help="folder of the earlier run")
    _add_cohort(apply)
    apply.set_defaults(command=_apply)
    demo = commands.add_parser("demo", help="run everything on a synthetic cohort")
    demo.add_argument("out", type=Path, nargs="?", default=Path("voxout-demo"), metavar="OUT")
    _add_shared(demo)
    demo.set_defaults(command=_demo)
    benchmark = commands.add_parser("benchmark", help="compare the method with others where it takes minutes")
    _add_mnist_c(benchmark.add_subparsers(required=True, metavar="BENCHMARK"))
    return parser


def _add_mnist_c(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    about = "One digit is normal, nine are not, under the 15 corruptions of MNIST-C; figures and page in OUT."
    mnist_c = benchmarks.add_parser("mnist-c", help="one digit against nine, under 15 corruptions", description=about)
    mnist_c.add_argument("out", type=Path, metavar="OUT", help="folder for everything that is made")
    mnist_c.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of MNIST-C, folder of MNIST's IDX files, or npz with images and labels; default: the 1,797 digits "
        "that scikit-learn carries",
    )
    mnist_c.add_argument("--seeds", type=_at_least_one, default=3, metavar="N", help="repeats, each with its own split")
    mnist_c.add_argument("--methods", type=_names, metavar="A,B", help="only these; default: all")
    mnist_c.add_argument("--digits", type=_names, metavar="0,1", help="the normal ones, in turn; default: all ten")
    mnist_c.add_argument("--jobs", type=_at_least_one, metavar="N", help="trainings at once; default: one a core")
    mnist_c.add_argument("-q", "--quiet", action="store_true", help="only results and errors")
    mnist_c.set_defaults(command=_mnist_c, dry_run=False, verbose=False)


def _add_cohort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="manifest (CSV) or BIDS folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for everything that is made")
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings; those not named keep their defaults")
    parser.add_argument("--preset", metavar="NAME", help="named settings to start from: default, demo or paper-1mm")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")
    parser.add_argument("--seed", type=int, help="the same seed gives the same result")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    parser.add_argument(
        "--jobs", type=_at_least_one, metavar="N", help="subjects worked on at once; default: one a core"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and why")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line a subject")
    parser.add_argument("-q", "--quiet", action="store_true", help="only results and errors")


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.replace(",", " ").split() if name]


def _run(options: argparse.Namespace) -> int:
    from ..data_manifests.derivatives import OutputFolder

    return _work(options, options.stages, saved=OutputFolder(options.out).config)


def _apply(options: argparse.Namespace) -> int:
    from ..data_manifests.derivatives import OutputFolder
    from .stages import APPLIED, require_whole_model

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
        saved if go_on else options.config, preset=options.preset, overrides=options.set, seed=options.seed
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
        from .assessment import figures_in_words

        for line in figures_in_words(run.out):
            run.console.say(line, level=-1)
        run.console.say(f"report: {run.out.report}", level=-1)
    if failures:
        run.console.warn(f"{len(failures)} subject(s) failed; {run.out.failures} says why.")
        return SOME_FAILED
    return DONE


def _chosen(manifest: "Manifest", subjects: Sequence[str] | None) -> frozenset[str] | None:
    if subjects is None:
        return None
    names = {name.removeprefix("sub-") for name in subjects}
    records = [r for r in manifest if r.subject_id in names or r.key.removeprefix("sub-") in names]
    missing = sorted(names - {r.subject_id for r in records} - {r.key.removeprefix("sub-") for r in records})
    if missing:
        raise UserError(f"--subjects: {', '.join(missing)} not in the cohort. Known are ids as in column subject_id.")
    return frozenset(r.key for r in records)


def _console(options: argparse.Namespace, out: Path):
    from ..data_manifests.derivatives import OutputFolder
    from .console import Console

    log = None
    if not options.dry_run:
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


if __name__ == "__main__":
    sys.exit(main())
