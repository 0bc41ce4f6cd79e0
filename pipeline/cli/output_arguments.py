"""Arguments of the commands on an output folder: remove, status, describe, native."""

import argparse

from ...data_manifests.terms import MODALITIES
from .shared_options import path_of


def add_remove(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout remove`."""
    parser.description = (
        "Delete the prepared images, latents, maps, pages and scores of subjects, but no input. What was made of all "
        "controls together (patches, model) stays, and is named."
    )
    parser.add_argument("out", type=path_of, metavar="OUT", help="output folder of a run")
    parser.add_argument("subjects", nargs="+", metavar="ID", help="sub-01, or sub-01_ses-2")
    parser.set_defaults(command="remove", quiet=False, verbose=False, dry_run=False)


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout status`."""
    parser.description = (
        "Show how far a run is, also while it works: subjects by stage, rate and time left, and the reason of each "
        "failure. OUT/status.csv has a row per subject and stage, as of the last stage that ended."
    )
    parser.add_argument("out", type=path_of, metavar="OUT", help="output folder of a run")
    parser.add_argument("--table", action="store_true", help="print the table of now, as CSV")
    parser.set_defaults(command="status", quiet=False, verbose=False, dry_run=True)


def add_describe(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout describe`."""
    parser.description = (
        "Tell where a file or folder comes from that voxout wrote: command, stage, time, inputs, settings that differ "
        "from the defaults, versions, seed, hashes, kind of machine, and whether it was changed since. For an output "
        "folder with a model and for a packed model, with the model card."
    )
    parser.add_argument(
        "path", type=path_of, metavar="PATH", help="a map, a page, a table, a folder, a packed model, an output folder"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(command="describe", quiet=False, verbose=False, dry_run=True)


def add_native(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout native`."""
    parser.description = (
        "Resample a volume from MNI152NLin2009aSym to the grid of a subject's own image, once; or, with --transforms, "
        "write the subject's transforms for other tools."
    )
    parser.add_argument("folder", type=path_of, metavar="OUT", help="output folder of a run that prepared the subject")
    parser.add_argument("subject", metavar="ID", help="sub-01, or sub-01_ses-2")
    parser.add_argument(
        "volume", type=path_of, nargs="?", metavar="VOLUME", help="NIfTI file in template space, on any grid"
    )
    parser.add_argument(
        "result",
        type=path_of,
        nargs="?",
        metavar="RESULT",
        help="NIfTI file to write; overwrites an earlier result of this command, but no other file",
    )
    parser.add_argument("--image", choices=MODALITIES, default="t1w", help="native space of which image (default: t1w)")
    parser.add_argument("--like", type=path_of, metavar="IMAGE", help="image that defines the grid (default: the T1w)")
    parser.add_argument(
        "--labels",
        action="store_true",
        help="for atlases and masks: labels are whole numbers and keep their data type and value; atlases are "
        "resampled by nearest neighbours, masks keep their volume",
    )
    parser.add_argument(
        "--transforms",
        type=path_of,
        metavar="FOLDER",
        help="instead of VOLUME and RESULT: write the transforms between the image and the template as composite ITK "
        "files (.h5), for ANTs and other tools",
    )
    parser.set_defaults(command="native")
