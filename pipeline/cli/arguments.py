"""What can be written on the command line. Light, so that `--help` answers at once."""

import argparse
from importlib import metadata
from pathlib import Path

from ...data_manifests.terms import MODALITIES
from ..workflow.stage_titles import STAGE_TITLES

_EXAMPLES = """\
examples:
  voxout demo                            everything on a synthetic cohort, no input needed
  voxout check cohort.csv out            is my data in order?
  voxout run cohort.csv out              scans in, report out (out/report/index.html)
  voxout run cohort.csv out --set models.detector.nu=0.05
  voxout apply out new.csv new-out       map new patients with the model of an earlier run
  voxout score --maps maps --masks masks --brain-masks brains --healthy 'control*' --out scores
  voxout compare scores other-scores --out differences
  voxout benchmark mnist-c out           the method against others on handwritten digits, no input needed

exit codes: 0 done; 1 a bug in voxout; 2 something to mend in the call or the data; 3 done, but some subjects
failed (failures.csv names each, with its reason)
"""


def make_parser() -> argparse.ArgumentParser:
    """What `voxout` understands; `command` in its answer names the command."""
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
    _add_runs(run)
    run.set_defaults(command="run", stages=tuple(STAGE_TITLES), model=None)
    for name, title in STAGE_TITLES.items():
        stage = commands.add_parser(name, help=title, description=f"{title[0].upper()}{title[1:]}.")
        stage.set_defaults(command="run", stages=(name,), model=None)
        _add_cohort(stage, needed=name != "score")
        if name == "score":
            _add_maps(stage)
        if name in ("prepare", "map"):
            stage.add_argument("--subjects", nargs="+", metavar="ID", help="only these subjects; the others later")
        if name == "report":
            _add_runs(stage)
    compare = commands.add_parser("compare", help="compare the scores of two or more methods on the same subjects")
    compare.add_argument("folders", type=Path, nargs="+", metavar="SCORES", help="folders that `voxout score` wrote")
    compare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for compare.json, compare.csv")
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    compare.set_defaults(command="compare")
    apply = commands.add_parser("apply", help="map new subjects with the model of an earlier run")
    apply.add_argument("model", type=Path, metavar="MODEL", help="folder of the earlier run")
    _add_cohort(apply)
    apply.set_defaults(command="apply")
    remove = commands.add_parser("remove", help="delete all that was made of some subjects")
    remove.description = "Deletes what was prepared of subjects, their maps, pages and scores; never an input."
    remove.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    remove.add_argument("subjects", nargs="+", metavar="ID", help="sub-01, or sub-01_ses-2")
    remove.set_defaults(command="remove", quiet=False, verbose=False, dry_run=False)
    native = commands.add_parser("native", help="bring a volume of template space to a subject's own image")
    _add_native(native)
    demo = commands.add_parser("demo", help="run everything on a synthetic cohort")
    demo.add_argument("out", type=Path, nargs="?", default=Path("voxout-demo"), metavar="OUT")
    _add_shared(demo)
    demo.set_defaults(command="demo")
    benchmark = commands.add_parser("benchmark", help="compare the method with others where it takes minutes")
    _add_mnist_c(benchmark.add_subparsers(required=True, metavar="BENCHMARK"))
    return parser


def _add_native(parser: argparse.ArgumentParser) -> None:
    parser.description = "One interpolation from MNI152 to the grid of a subject's own image."
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder of a run that prepared the subject")
    parser.add_argument("subject", metavar="ID", help="sub-01, or sub-01_ses-2")
    parser.add_argument("volume", type=Path, metavar="VOLUME", help="NIfTI in template space, on any grid")
    parser.add_argument(
        "result",
        type=Path,
        metavar="RESULT",
        help="NIfTI to write; an earlier result of this command is replaced, any other file is not",
    )
    parser.add_argument("--image", choices=MODALITIES, default="t1w", help="whose space (default: t1w)")
    parser.add_argument("--like", type=Path, metavar="IMAGE", help="whose grid; default: that of the T1w")
    parser.add_argument(
        "--labels",
        action="store_true",
        help="for atlases, by nearest neighbours, and masks, which keep their volume; "
        "labels are whole numbers and keep their type and value",
    )
    parser.set_defaults(command="native")


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
    mnist_c.add_argument(
        "--seeds", type=_at_least_one, default=3, metavar="N", help="repeats, each with its own split (default: 3)"
    )
    mnist_c.add_argument(
        "--methods", type=_names, metavar="A,B", help="only these, by the names of docs/mnist-c.md; default: all"
    )
    mnist_c.add_argument("--digits", type=_names, metavar="0,1", help="the normal ones, in turn; default: all ten")
    mnist_c.add_argument("--jobs", type=_at_least_one, metavar="N", help="trainings at once; default: one a core")
    mnist_c.add_argument("-q", "--quiet", action="store_true", help="only results and errors")
    mnist_c.set_defaults(command="mnist_c", dry_run=False, verbose=False)


def _add_cohort(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    number = None if needed else "?"
    parser.add_argument("cohort", type=Path, nargs=number, metavar="COHORT", help="manifest (CSV) or BIDS folder")
    parser.add_argument("out", type=Path, nargs=number, metavar="OUT", help="folder for everything that is made")
    _add_shared(parser)


def _add_maps(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score the maps of a run (COHORT OUT), or anybody's maps (--maps, --masks, --out). Files of one subject are "
        "matched by id: the begin of BIDS names (sub-01_...), otherwise the whole name without its suffix; or write "
        "a path in which {id} stands for the id, as in --maps 'maps/{id}_map.nii.gz'."
    )
    maps = parser.add_argument_group("anybody's maps")
    maps.add_argument("--maps", metavar="DIR", help="anomaly maps (NIfTI), higher = more anomalous")
    maps.add_argument("--masks", metavar="DIR", help="lesion masks, on the grids of the maps")
    maps.add_argument("--brain-masks", metavar="DIR", help="what counts; without them every voxel of the image does")
    maps.add_argument("--cohort", dest="people", type=Path, metavar="CSV", help="subject_id, group, site, age")
    maps.add_argument(
        "--healthy", nargs="+", default=[], metavar="ID", help="healthy subjects, as ids or 'patterns*': they set the "
        "threshold and need no mask",
    )  # fmt: skip
    maps.add_argument("--out", dest="scores", type=Path, metavar="DIR", help="folder for the scores")
    parser.set_defaults(command="score")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        type=_named_path,
        metavar="[NAME=]RUN",
        help="show the figures of these runs (folder or scores.json) beside the report's own",
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else ("", Path(text))


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings; those not named keep their defaults")
    parser.add_argument(
        "--preset", metavar="NAME", help="named settings to start from: default, fast, fine-1mm, paper-1mm or demo"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")
    parser.add_argument("--seed", type=int, help="the same seed gives the same result")
    parser.add_argument(
        "--seeds", type=_at_least_one, metavar="N", help="train N encoders, of N seeds; the map is their mean"
    )
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
