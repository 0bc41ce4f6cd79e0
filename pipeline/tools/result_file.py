"""Where the result of `voxout native` may lie: in a free place, or on an earlier result of the same command.

Everything else that could stand there, a scan, an atlas, a manifest, a file of a run, is the user's, and stays.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import read_description
from ..workflow.replacement import OWN_NAMES

MARK = "voxout native"
"""In the header of every result: by it an earlier one is known again."""


def require_result_place(result: Path, out: OutputFolder, inputs: Mapping[str, Path]) -> None:
    """Refuse a result that would take the place of something else.

    Parameters
    ----------
    result : Path
    out : OutputFolder
        Of the run, whose own folders take no other files.
    inputs : mapping from what it is, as ``"VOLUME"``, to path
        What is about to be read.

    Raises
    ------
    UserError
    """
    if not result.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{private(result)}: expected a name that ends in .nii or .nii.gz. Rename the result.")
    for what, path in inputs.items():
        if _same(result, path):
            raise UserError(f"{private(result)}: is {what} itself, expected a new file. Choose another name.")
    if _is_in_run(result, out.root):
        raise UserError(
            f"{private(result)}: lies where the run keeps its own files, expected a place apart from them. Choose "
            "another folder."
        )
    if os.path.lexists(result) and not _is_earlier_result(result):
        raise UserError(
            f"{private(result)}: exists and is not an earlier result of `voxout native`, expected a new name. "
            "Choose another, or move the file away."
        )


def _is_in_run(result: Path, root: Path) -> bool:
    """Whether one of the folders above it belongs to the run, by whichever name, link or case it is reached."""
    folder = Path(os.path.realpath(result.parent))
    for place in (folder, *folder.parents):
        # A folder that is not made yet can be told by its name only.
        if place.name.casefold() in OWN_NAMES and _same(place.parent, root):
            return True
        if any(_same(place, root / name) for name in OWN_NAMES):
            return True
    return False


def _is_earlier_result(path: Path) -> bool:
    try:
        return read_description(path) == MARK
    except UserError:
        return False


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False
