"""Options that several commands share, and the kinds of values that they take."""

import argparse
import re
from pathlib import Path

from ...data_manifests.errors import UserError
from ...data_manifests.user_paths import given_path


def add_shared(parser: argparse.ArgumentParser, *, fits: bool = True) -> None:
    """Add the options of all stages; those of the fit are hidden for a command that applies a fitted model."""

    def shown(text: str) -> str:
        return text if fits else argparse.SUPPRESS

    parser.add_argument(
        "--preset", metavar="NAME", help=shown("predefined settings: default, fast, fine-1mm, paper-1mm or demo")
    )
    add_settings(parser)
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        metavar="N",
        help=shown("train N encoders with N seeds; the map is their mean (no effect with --preset fast)"),
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME[,NAME]",
        help="cpu, cuda, cuda:1, ... (default: GPU if available); several, as in cuda:0,cuda:1, train together",
    )
    parser.add_argument(
        "--cluster",
        choices=("local", "slurm", "pbs", "lsf", "sge"),
        default="local",
        help="process subjects in jobs of this queueing system; settings: cluster (docs/servers.md)",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="process subjects with a running Dask scheduler, as tls://node7:8786"
    )
    add_work(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that change settings."""
    parser.add_argument("--config", type=path_of, metavar="YAML", help="file of settings; others keep their defaults")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; repeatable")
    parser.add_argument("--seed", type=whole_number, help="random seed; the same seed gives the same result")


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the options on how the work is done and what is printed."""
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help="subjects processed in parallel (default: one per core)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and why")
    parser.add_argument("-v", "--verbose", action="store_true", help="print one line per subject")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")


def add_cohort(
    parser: argparse.ArgumentParser,
    *,
    needed: bool = True,
    what: str = "manifest (CSV) or BIDS folder",
    fits: bool = True,
) -> None:
    """Add the cohort, the output folder and the options of all stages."""
    number = None if needed else "?"
    parser.add_argument("cohort", type=path_of, nargs=number, metavar="COHORT", help=what)
    parser.add_argument("out", type=path_of, nargs=number, metavar="OUT", help="output folder")
    add_shared(parser, fits=fits)


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the option for reference runs."""
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        type=_named_path,
        metavar="[NAME=]RUN",
        help="reference runs (folder or scores.json) whose scores the report shows for comparison",
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, path_of(path)) if equals else ("", path_of(text))


def path_of(text: str) -> Path:
    """Parse a path."""
    try:
        return given_path(text)
    except UserError as error:  # argparse adds the name of the argument
        raise argparse.ArgumentTypeError(str(error)) from error


def path_text(text: str) -> str:
    """Return a path as it is written: it may contain ``{id}``, and ``~/`` is not ``~``."""
    path_of(text)
    return text


def whole_number(text: str) -> int:
    """Parse an integer of at most 18 digits; `int` also accepts ``1_0`` and digits of other scripts."""
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"found {text}, expected an integer of at most 18 digits")
    return int(text)


def at_least_one(text: str) -> int:
    """Parse an integer of at least 1."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected an integer of at least 1")
    return int(text)


def gigabytes(text: str) -> float:
    """Parse an amount of memory: ``16``, ``16GB`` or ``16000MB``."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(?:(G|M)B?)?", text, re.IGNORECASE)
    number = float(found[1]) / (1000 if (found[2] or "").lower() == "m" else 1) if found else 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected an amount of memory such as 16GB")
    return number
