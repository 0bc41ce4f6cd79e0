"""Check where `voxout native` may write its result: to a new path, or over an earlier result of the same command.

Any other file, such as a scan, an atlas, a manifest or a file of a run, is never overwritten.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import read_description
from ..workflow.ownership import OWN_NAMES

MARK = "voxout native"
"""Description in the header of every result, by which earlier results are recognised."""


def require_result_place(result: Path, out: OutputFolder, inputs: Mapping[str, Path]) -> None:
    """Refuse a result that would overwrite any other file.

    Parameters
    ----------
    result : Path
    out : OutputFolder
        Output folder of the run; its own folders accept no other files.
    inputs : mapping from description, as ``"VOLUME"``, to path
        Files that the command reads.

    Raises
    ------
    UserError
    """
    if not result.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{private(result)}: expected a name that ends in .nii or .nii.gz. Rename the result.")
    for what, path in inputs.items():
        if _same(result, path):
            raise UserError(f"{private(result)}: is {what} itself, expected a new file. Choose another name.")
    require_outside_run(result, out.root)
    if os.path.lexists(result) and not _is_earlier_result(result):
        raise UserError(
            f"{private(result)}: exists and is not an earlier result of `voxout native`, expected a new name. "
            "Choose another name, or move the file away."
        )


def require_outside_run(result: Path, root: Path) -> None:
    """Refuse a result in one of the folders that a run writes to."""
    if _is_in_run(result, root):
        raise UserError(
            f"{private(result)}: lies in a folder of the run's own files, expected another folder. Choose "
            "another folder."
        )


def _is_in_run(result: Path, root: Path) -> bool:
    """Whether a parent folder belongs to the run, by whatever name, link or case it is given."""
    folder = Path(os.path.realpath(result.parent))
    for place in (folder, *folder.parents):
        # A folder that does not exist yet is recognised by its name.
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
