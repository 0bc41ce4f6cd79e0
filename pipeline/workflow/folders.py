"""Output folders that a user names."""

import os
from pathlib import Path

from ...data_manifests.errors import UserError, private


def make_folder(folder: Path) -> None:
    """Create an output folder.

    Raises
    ------
    UserError
        The name cannot be used, or the folder cannot be created or is not writable.
    """
    if folder.parts and folder.parts[0].startswith("~"):
        raise UserError(
            f"{private(folder, 'the output folder')}: the shell did not expand ~, expected a full path. Write out "
            "the path."
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: its name is not UTF-8, expected UTF-8. Choose another output "
            "folder."
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{private(folder, 'the output folder')}: cannot be created ({error.strerror}). Choose another output "
            "folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{private(folder, 'the output folder')}: is not writable. Choose another output folder.")
