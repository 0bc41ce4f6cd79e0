"""Arguments of the commands on fitted models: apply, adapt, certify, pack, write as a MONAI bundle."""

import argparse

from .dicom_arguments import add_choice_of_series
from .shared_options import add_cohort, at_least_one, path_of, whole_number


def add_apply(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout apply`."""
    parser.add_argument(
        "model", type=path_of, metavar="MODEL", help="output folder of the earlier run, or a packed model (.voxout)"
    )
    parser.description = (
        "Map new subjects with the model of an earlier run, with its settings and its threshold. Only settings of the "
        "section evaluation can be changed, such as evaluation.recalibrate: set the threshold on healthy scans of the "
        "new cohort, for instance of another scanner."
    )
    what = "manifest (CSV), BIDS folder, a single T1w scan (.nii, .nii.gz, .mgz), or with --dicom a DICOM study"
    add_cohort(parser, what=what, fits=False)
    parser.add_argument(
        "--flair", type=path_of, metavar="SCAN", help="with a single scan: its FLAIR, if the model uses it"
    )
    parser.add_argument("--brain-mask", type=path_of, metavar="MASK", help="with a single scan: its brain mask")
    parser.add_argument(
        "--age", type=float, metavar="YEARS", help="with a single scan: age, to compare with the controls"
    )
    parser.add_argument(
        "--matched-controls",
        type=path_of,
        metavar="COHORT",
        help="fit the model anew for each subject, on its controls weighted by age, sex and site as in this cohort, "
        "which it was fitted to (docs/maps.md#matched-controls)",
    )
    parser.add_argument(
        "--age-sd",
        type=float,
        metavar="YEARS",
        help="with --matched-controls: standard deviation of the weights in age (default: 10)",
    )
    parser.add_argument("--dicom", action="store_true", help="COHORT is the folder of a DICOM study")
    add_choice_of_series(parser)
    parser.set_defaults(command="apply")


def add_adapt_scanner(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout adapt-scanner`."""
    parser.add_argument(
        "model", type=path_of, metavar="MODEL", help="output folder of a run, or a packed model (.voxout)"
    )
    parser.description = (
        "Adapt a model to another scanner: calibrate its scores and set its threshold on healthy controls of that "
        "scanner, at least 5 and better 20 or more. OUT holds the adapted model, to be used like that of a run; the "
        "given model is not changed."
    )
    add_cohort(parser, what="manifest (CSV) or BIDS folder of healthy controls", fits=False)
    parser.set_defaults(command="adapt-scanner")


def add_adapt(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout adapt`."""
    parser.description = (
        "Adapt a model to a few patients with lesion masks: how its scorers are combined is learnt from them, and "
        "calibrated on the model's training controls as before. What is gained is measured on patients that are left "
        "out, and told only if it is shown. OUT holds the adapted model, to be used like that of a run; the given "
        "model is not changed. With healthy scans of another scanner, use `voxout adapt-scanner`."
    )
    parser.add_argument("model", type=path_of, metavar="MODEL", help="output folder of the run that fitted the model")
    add_cohort(parser, what="manifest (CSV) or BIDS folder of patients with lesion masks", fits=False)
    parser.add_argument(
        "--head",
        action="store_true",
        help="also train a small network on the scorers' outputs and the latents (experimental)",
    )
    parser.add_argument(
        "--variance-weight",
        type=float,
        default=0.0,
        metavar="X",
        help="with --head: weight of the variance between networks of different patients in the loss (default: 0)",
    )
    parser.set_defaults(command="adapt")


def add_certify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout certify`."""
    parser.description = (
        "Measure the detection limits of the model of a run: lesions of five kinds are painted into its held-out "
        "controls and mapped, and the probability of finding them is fitted by size and strength. OUT/certificate "
        "holds a page, tables and a map of blind spots."
    )
    parser.add_argument("out", type=path_of, metavar="OUT", help="output folder of the run that fitted the model")
    parser.add_argument(
        "--lesions", type=at_least_one, default=320, metavar="N", help="lesions in each head (default: 320)"
    )
    parser.add_argument("--seed", type=whole_number, help="random seed of the lesions (default: that of the run)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="as for `voxout run`")
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help="heads in parallel (default: one per core)")
    parser.add_argument("-v", "--verbose", action="store_true", help="print one line per head")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    parser.set_defaults(command="certify", dry_run=False)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout model`."""
    parser.description = "Share a fitted model: one file without scans and ids (docs/sharing-models.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pack = actions.add_parser("pack", help="write a model to one file")
    pack.add_argument("folder", type=path_of, metavar="OUT", help="output folder of the run that fitted it")
    pack.add_argument("file", type=path_of, metavar="FILE", help="file to write, *.voxout")
    pack.add_argument("--licence", metavar="TEXT", help="licence of the model, for its card: 'CC BY 4.0'")
    pack.add_argument("--note", metavar="TEXT", help="a sentence for its card, as on scanner, protocol or a paper")
    unpack = actions.add_parser("unpack", help="unpack a model into a folder")
    unpack.add_argument("file", type=path_of, metavar="FILE", help="packed model")
    unpack.add_argument("folder", type=path_of, metavar="FOLDER", help="new folder")
    show = actions.add_parser("show", help="check a packed model and print its card")
    show.add_argument("file", type=path_of, metavar="FILE", help="packed model")
    for action, name in ((pack, "pack"), (unpack, "unpack"), (show, "show")):
        action.set_defaults(command="model", action=name)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout bundle`."""
    parser.description = "A fitted model as a MONAI bundle, which `python -m monai.bundle run` runs (docs/bundle.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write a model as a MONAI bundle")
    export.add_argument(
        "model", type=path_of, metavar="MODEL", help="output folder of a run, or a packed model (.voxout)"
    )
    export.add_argument("bundle", type=path_of, metavar="BUNDLE", help="new folder")
    export.add_argument("--licence", metavar="TEXT", help="licence of the model, for its card: 'CC BY 4.0'")
    taken = actions.add_parser("import", help="take the model out of a bundle; nothing of it is run")
    taken.add_argument("bundle", type=path_of, metavar="BUNDLE", help="folder that `voxout bundle export` wrote")
    taken.add_argument("folder", type=path_of, metavar="FOLDER", help="new folder, to be used like that of a run")
    for action, name in ((export, "export"), (taken, "import")):
        action.set_defaults(command="bundle", action=name)
