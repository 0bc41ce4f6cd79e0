"""Comparison of the method with others on handwritten digits under the corruptions of MNIST-C.

python -m benchmarks.mnist_c OUT [--data PATH] [--digits 0,1] [--methods A,B] [--seeds N] [--jobs N]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from voxout.pipeline.cli.program import open_console, run_program
from voxout.pipeline.cli.shared_options import at_least_one
from voxout.pipeline.exit_codes import DONE, SOME_FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    return run_program(_run, _parser().parse_args(arguments), signals=arguments is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mnist_c",
        description="Anomaly detection on MNIST-C: one digit is normal, nine are anomalous, under 15 corruptions.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of MNIST-C, folder of the IDX files of MNIST, or npz with images and labels; default: the 1,797 "
        "digits of scikit-learn",
    )
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        default=3,
        metavar="N",
        help="number of repetitions, each with a different split (default: 3)",
    )
    parser.add_argument(
        "--methods", type=_names, metavar="A,B", help="methods to run, by the names in docs/mnist-c.md; default: all"
    )
    parser.add_argument(
        "--digits",
        type=_names,
        metavar="0,1",
        help="digits used as the normal class, one after the other; default: all",
    )
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help="parallel trainings; default: one per core")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    parser.set_defaults(dry_run=False, verbose=False)
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.replace(",", " ").split() if name]


def _run(options: argparse.Namespace) -> int:
    # Parallel trainings use one thread each; the variable is read when the libraries are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Worker processes need the root folder to import this package.
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    from .command import benchmark

    failures = benchmark(
        options.out,
        open_console(options, options.out),
        data=options.data,
        digits=options.digits,
        seeds=options.seeds,
        methods=options.methods,
        jobs=options.jobs,
    )
    return SOME_FAILED if failures else DONE


if __name__ == "__main__":
    sys.exit(main())
