"""Arguments of the commands on DICOM."""

import argparse

from .shared_options import path_of


def add_dicom(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `voxout dicom`."""
    parser.description = "DICOM in and out; needs the extra dicom: pip install '.[dicom]' (docs/dicom.md)."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    into = actions.add_parser("in", help="convert the T1w (and FLAIR) of a study to NIfTI")
    into.description = (
        "Find the T1w (and FLAIR) of a DICOM study by its tags, check its geometry, and convert it to NIfTI and JSON "
        "without anything that identifies the patient. To apply a model at once: voxout apply MODEL --dicom STUDY OUT."
    )
    into.add_argument("cohort", type=path_of, metavar="STUDY", help="folder of a study or series; only read")
    into.add_argument("out", type=path_of, metavar="OUT", help="folder for the scan")
    add_choice_of_series(into)
    into.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    into.set_defaults(command="dicom", action="in", verbose=False, dry_run=False)
    back = actions.add_parser("out", help="write the results of a subject as DICOM")
    back.description = (
        "Write the results of a subject as DICOM on the grid of its original series: pictures of axial slices with the "
        "map burnt in, an overview, the findings as Segmentation, the z-scores as Parametric Map, and the report as "
        "PDF. They hold the patient's name, for the archive that the scan came from."
    )
    back.add_argument("out", type=path_of, metavar="OUT", help="output folder of `voxout apply`")
    back.add_argument("id", metavar="SUBJECT", help="sub-01, or sub-01_ses-2")
    back.add_argument("target", type=path_of, metavar="TARGET", help="new folder for the DICOM files")
    back.add_argument("--scans", type=path_of, metavar="DIR", help="folder of `voxout dicom in`, if it converted it")
    back.add_argument("--study", type=path_of, metavar="DIR", help="folder of the original images, if they were moved")
    back.add_argument("--send", metavar="AET@HOST:PORT", help="send the files to this archive, too (C-STORE)")
    back.add_argument("--calling-aet", default="VOXOUT", metavar="AET", help="own AE title (default: VOXOUT)")
    back.set_defaults(command="dicom", action="out")


def add_choice_of_series(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a series of a study."""
    parser.add_argument("--series", metavar="NUMBER", help="number or UID of the T1w series (default: by its tags)")
    parser.add_argument("--flair-series", metavar="NUMBER", help="number or UID of the FLAIR series")
    parser.add_argument("--subject", metavar="ID", help="id of letters and digits (default: made from the study's UID)")
    parser.add_argument("--session", metavar="ID", help="id of the session, of letters and digits")
