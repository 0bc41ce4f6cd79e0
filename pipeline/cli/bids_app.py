"""`voxout-bids`: the BIDS-App. Its options are those of other BIDS-Apps, its work is that of `voxout`."""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata

from ...data_manifests.user_paths import given_path
from .program import closing, open_console, run_options, run_program
from .shared_options import add_shared, at_least_one, gigabytes

_EXAMPLES = """\
examples:
  voxout-bids bids out participant --model model.voxout   map all scans with a model
  voxout-bids bids out participant --model model.voxout --participant-label 01 02
  voxout-bids bids out participant --preset fast           prepare all scans ...
  voxout-bids bids out group                               ... and fit a model to the controls, map the others, score

exit codes: as for voxout; 3: finished, but some subjects failed
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `voxout-bids`."""
    parser = argparse.ArgumentParser(
        prog="voxout-bids",
        description="Voxel-wise anomaly maps of brain MRI for a BIDS dataset, as a BIDS derivative dataset.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"voxout {metadata.version('voxout')}")
    parser.add_argument("bids_dir", metavar="BIDS", help="root of the BIDS dataset; only read")
    parser.add_argument("output_dir", metavar="OUT", help="folder for the BIDS derivatives")
    parser.add_argument(
        "analysis_level",
        choices=("participant", "group"),
        help="participant: map scans with --model, or else prepare them; group: fit a model to the prepared controls, "
        "map the others, score and report, or with --model score and report",
    )
    parser.add_argument("--model", metavar="MODEL", help="packed model (.voxout) or folder of a run")
    parser.add_argument("--participant-label", nargs="+", default=[], metavar="LABEL", help="01, or sub-01")
    parser.add_argument("--session-label", nargs="+", default=[], metavar="LABEL", help="1, or ses-1")
    parser.add_argument(
        "--bids-filter-file",
        metavar="JSON",
        help='which of several scans: {"t1w": {"acquisition": "mprage", "run": [1, null]}}',
    )
    parser.add_argument(
        "--skip-bids-validation", action="store_true", help="do not check the description of the dataset"
    )
    parser.add_argument(
        "-w",
        "--work-dir",
        metavar="DIR",
        help="intermediate results and the fitted model, needed to resume (default: OUT/work)",
    )
    parser.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        default=[],
        metavar="DIR",
        help="derivative datasets outside BIDS, such as fmriprep=/data/fmriprep: their brain and lesion masks are used",
    )
    parser.add_argument("--reports-only", action="store_true", help="write only the pages again, from what is there")
    parser.add_argument("--n-cpus", "--nprocs", dest="jobs", type=at_least_one, metavar="N", help="the same as --jobs")
    parser.add_argument(
        "--omp-nthreads", type=at_least_one, metavar="N", help="no effect: a participant takes one thread (see --jobs)"
    )
    parser.add_argument(
        "--mem",
        type=gigabytes,
        metavar="GB",
        help="memory that may be used: participants are processed at the same time as far as it is enough for",
    )
    add_shared(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the BIDS-App and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [re.sub("^--[a-z_-]+", lambda option: _our_name(option[0]), word) for word in words]
    options = make_parser().parse_args(words)
    options.asked = f"voxout-bids {options.analysis_level}"
    return run_program(_run_level, options, signals=arguments is None)


def _our_name(option: str) -> str:
    """Return the name of an option that another BIDS-App, or an older one, writes otherwise."""
    name = option.replace("_", "-")
    return {"--config-file": "--config", "--random-seed": "--seed"}.get(name, name)


def _run_level(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.bids_filter import read_filters
    from ...data_manifests.cohort.bids_selection import BidsSelection
    from ...data_manifests.cohort.subject import Manifest
    from ..bids.dataset import require_dataset, require_place_of_derivatives
    from ..bids.level import BidsCall, run_level
    from ..model.unpack import model_to_apply

    dataset, derivatives = given_path(options.bids_dir, "BIDS"), given_path(options.output_dir, "OUT")
    work = derivatives / "work" if options.work_dir is None else given_path(options.work_dir, "--work-dir")
    options.cohort, options.out = dataset, work / "voxout"
    given, filters = (
        None if value is None else given_path(value, name)
        for name, value in (("--model", options.model), ("--bids-filter-file", options.bids_filter_file))
    )
    selection = BidsSelection(
        tuple(label.removeprefix("sub-") for label in options.participant_label),
        tuple(label.removeprefix("ses-") for label in options.session_label),
        {} if filters is None else read_filters(filters),
        # fMRIPrep's form gives a name as well.
        derivatives=tuple(given_path(word.partition("=")[2] or word, "--derivatives") for word in options.derivatives),
    )
    call = BidsCall(dataset, derivatives, options.analysis_level, selection, options.reports_only, options.mem)
    if not options.skip_bids_validation:
        require_dataset(dataset)
    require_place_of_derivatives(derivatives, {}, dataset)
    with nullcontext() if given is None else model_to_apply(given, options.out, dry_run=options.dry_run) as model:
        run, failures = run_level(
            call, run_options(options, Manifest(()), model), lambda: open_console(options, options.out)
        )
        if call.stages(applies=model is not None)[-1] == "prepare":
            run.console.say("prepared; for maps, call the level group next, or give a model with --model", level=-1)
        return closing(run, call.stages(applies=model is not None), failures, options.dry_run)
