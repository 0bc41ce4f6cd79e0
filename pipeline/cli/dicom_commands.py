"""Commands on DICOM: convert the scan of a study, apply a model to it, write results for the archive."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...data_manifests.errors import UserError, private
from ..exit_codes import DONE
from ..workflow.standard_streams import write_line
from .program import open_console

if TYPE_CHECKING:
    from ...data_manifests.cohort.subject import SubjectRecord
    from ..dicom.receive import Checked


def dicom(options: argparse.Namespace) -> int:
    """Convert the scan of a study (``in``), or write the results of a subject as DICOM (``out``)."""
    from ..dicom.extra import require_extra

    require_extra()
    return _receive(options) if options.action == "in" else _export(options)


def received_scan(options: argparse.Namespace) -> "SubjectRecord | None":
    """Convert the scan of a study that a model is applied to; None in a dry run, which only checks the study."""
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..dicom.extra import require_extra
    from ..dicom.receive import receive
    from ..workflow.ownership import require_own_place

    require_extra()
    require_own_place(options.out)
    checked = _checked(options)
    console = open_console(options, options.out)
    _tell(checked, console.say, console.warn)
    return None if options.dry_run else receive(checked, OutputFolder(options.out).received)


def require_no_dicom_options(options: argparse.Namespace) -> None:
    """Refuse options that only make sense for a study."""
    given = [name for name in ("series", "flair_series", "subject", "session") if getattr(options, name)]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')}: found no --dicom, expected it for a DICOM study. Give --dicom and the "
            "folder of the study."
        )


def _checked(options: argparse.Namespace) -> "Checked":
    from ..dicom.receive import Request, check_study

    request = Request(options.cohort, options.series, options.flair_series, options.subject, options.session)
    return check_study(request, options.out)


def _tell(checked: "Checked", say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    for modality, series in checked.series.items():
        say(f"{modality}: {series}")
    for note in checked.notes:
        say(f"note: {note}")
    for warning in checked.warnings:
        warn(f"warning: {warning}")


def _receive(options: argparse.Namespace) -> int:
    from ..dicom.receive import receive

    console = open_console(options, None)
    checked = _checked(options)
    _tell(checked, console.say, console.warn)
    subject = receive(checked, options.out)
    for image in subject.images.values():
        console.say(private(image, "the converted scan"), level=-1)
    return DONE


def _export(options: argparse.Namespace) -> int:
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ..dicom.export import require_target, write_objects
    from ..dicom.results import read_results
    from ..dicom.send import Archive, send

    archive = None if options.send is None else Archive.parse(options.send)
    require_target(options.target, options.out)
    results = read_results(OutputFolder(options.out), options.id, options.scans, options.study)
    written = write_objects(results, options.target)
    write_line(f"{results.key}: {results.headline}", sys.stdout)
    write_line(
        f"{options.target}: {len(written)} DICOM files, with the patient's name: for the archive only", sys.stdout
    )
    if archive is not None:
        send(written, archive, options.calling_aet)
        write_line(f"sent to {archive}: {len(written)} files", sys.stdout)
    return DONE
