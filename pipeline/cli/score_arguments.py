"""Arguments of the commands that score maps and compare methods."""

import argparse

from .shared_options import add_settings, add_work, path_of, path_text, whole_number


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout evaluate`."""
    parser.description = (
        "Evaluate maps of any method against lesion masks. The files of a subject are matched by id: the start of BIDS "
        "names (sub-01_...), otherwise the file name without its suffix. If the name contains more, give a path with "
        "{id} in place of the id, as in --maps 'maps/{id}_map.nii.gz'. Put quotes around a path with *."
    )
    add_maps(parser)
    add_settings(parser)
    add_work(parser)
    parser.set_defaults(command="evaluate")


def add_maps(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Add the options of `voxout evaluate`; hidden ones for its old form, ``voxout score --maps``."""

    def shown(text: str) -> str:
        return argparse.SUPPRESS if hidden else text

    parser.add_argument(
        "--maps",
        type=path_text,
        required=not hidden,
        metavar="DIR",
        help=shown("anomaly maps (NIfTI), higher = more anomalous"),
    )
    parser.add_argument("--masks", type=path_text, metavar="DIR", help=shown("lesion masks, on the grids of the maps"))
    parser.add_argument(
        "--brain-masks",
        type=path_text,
        metavar="DIR",
        help=shown("brain masks; without them, all voxels are scored"),
    )
    parser.add_argument(
        "--cohort",
        dest="participants",
        type=path_of,
        metavar="CSV",
        help=shown("table with subject_id, group, site and age"),
    )
    parser.add_argument(
        "--healthy",
        nargs="+",
        default=[],
        metavar="ID",
        help=shown("healthy subjects, as ids or 'patterns*'; they set the threshold and need no lesion mask"),
    )
    parser.add_argument(
        "--out", dest="scores", required=not hidden, type=path_of, metavar="DIR", help=shown("folder for the scores")
    )


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout compare`."""
    parser.description = (
        "Score two or more methods again on the subjects they have in common, and print the differences (second minus "
        "first) of all metrics with 95 % intervals from a bootstrap over the same subjects."
    )
    parser.add_argument(
        "folders", type=path_of, nargs="+", metavar="SCORES", help="folders of `voxout evaluate` or runs"
    )
    parser.add_argument(
        "--out", type=path_of, required=True, metavar="DIR", help="folder for compare.json, compare.csv"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="random seed of the bootstrap")
    parser.set_defaults(command="compare")


def add_rivals(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout rivals`."""
    parser.description = (
        "Fit other methods on the controls of a run, map its patients and held-out controls with them, and compare "
        "them with voxout's own maps (docs/rivals.md). With COHORT, `voxout run COHORT OUT` is brought up to date "
        "first. An interrupted comparison goes on. Results: OUT/rivals."
    )
    parser.add_argument(
        "paths", type=path_of, nargs="+", metavar="[COHORT] OUT", help="manifest or BIDS folder, and output folder"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="names; all that come with voxout")
    parser.add_argument("--preset", default="cpu", metavar="NAME", help="sizes of networks: cpu (default) or paper")
    parser.add_argument(
        "--run-preset", metavar="NAME", help="with COHORT: predefined settings of the run, as for `voxout run`"
    )
    parser.add_argument(
        "--lesions",
        type=path_of,
        metavar="CSV",
        help="table of lesions: subject, x_mm, y_mm, z_mm, and columns to group by, such as kind and contrast",
    )
    parser.add_argument(
        "--encoder-weights",
        type=path_of,
        metavar="FILE",
        help="of feature-inversion: a ResNet-34 (safetensors); by default, its encoder is trained on the controls",
    )
    add_settings(parser)
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: GPU if available)")
    add_work(parser)
    parser.set_defaults(command="rivals", seeds=None, cluster="local", scheduler=None, model=None)
