"""The method against others on handwritten digits under the corruptions of MNIST-C.

python -m benchmarks.mnist_c OUT [--data PATH] [--digits 0,1] [--methods A,B] [--seeds N] [--jobs N]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from voxout.pipeline.cli.arguments import at_least_one
from voxout.pipeline.cli.program import DONE, SOME_FAILED, open_console, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    return run_program(_run, _parser().parse_args(arguments), signals=arguments is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mnist_c",
        description="One digit is normal, nine are not, under the 15 corruptions of MNIST-C; figures and page in OUT.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for everything that is made")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of MNIST-C, folder of MNIST's IDX files, or npz with images and labels; default: the 1,797 digits "
        "that scikit-learn carries",
    )
    parser.add_argument(
        "--seeds", type=at_least_one, default=3, metavar="N", help="repeats, each with its own split (default: 3)"
    )
    parser.add_argument(
        "--methods", type=_names, metavar="A,B", help="only these, by the names of docs/mnist-c.md; default: all"
    )
    parser.add_argument("--digits", type=_names, metavar="0,1", help="the normal ones, in turn; default: all ten")
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help="trainings at once; default: one a core")
    parser.add_argument("-q", "--quiet", action="store_true", help="only results and errors")
    parser.set_defaults(dry_run=False, verbose=False)
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.replace(",", " ").split() if name]


def _run(options: argparse.Namespace) -> int:
    # As many threads as trainings would only wait for each other; read once, when the libraries are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Workers do not import from the current folder.
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
