"""`voxout dicom out`: the results of a subject as DICOM files, for the archive that the scan came from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data_manifests.errors import UserError, private
from ...data_manifests.user_paths import real
from ..workflow.folders import make_folder
from ..workflow.ownership import require_new_folder
from .captures import page_capture, pdf_document, slice_captures
from .objects import parametric_map, segmentations
from .pages import as_pdf, as_pictures, draw_pages
from .pictures import slice_pictures
from .reading import silent
from .results import Results


def require_target(target: Path, out: Path) -> None:
    """Refuse a target that holds something, or lies in the output folder of the run.

    The files hold the patient's name: they must not lie among results without names.

    Raises
    ------
    UserError
    """
    require_new_folder(target)
    if real(target).is_relative_to(real(out)):
        raise UserError(
            f"{private(target, 'the folder')}: lies in the output folder, which is free of patients' names, expected a "
            "folder outside of it. Choose another one."
        )


@silent()
def write_objects(results: Results, target: Path) -> list[Path]:
    """Write all objects of a subject into a new folder, which only its owner can read.

    Returns
    -------
    list of Path
    """
    make_folder(target)
    target.chmod(0o700)
    written = []
    for name, dataset in _objects(results):
        path = target / f"{name}.dcm"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            dataset.save_as(file, enforce_file_format=True)
        written.append(path)
    return written


def _objects(results: Results) -> Iterator[tuple[str, Any]]:
    for number, dataset in enumerate(slice_captures(results, slice_pictures(results)), start=1):
        yield f"slice-{number:03}", dataset
    pages = draw_pages(results)
    yield "overview", page_capture(results, as_pictures(pages))
    yield from segmentations(results).items()
    yield "z-scores", parametric_map(results)
    yield "report", pdf_document(results, as_pdf(pages))
