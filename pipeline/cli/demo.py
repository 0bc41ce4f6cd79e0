"""Synthetic cohort of `voxout demo`: heads with known lesions."""

import os
from pathlib import Path

from ...data_manifests.errors import UserError, private
from ..workflow.console import Console
from ..workflow.ownership import is_empty

CONTROLS, HELD_OUT, PATIENTS = 14, 3, 4
SPACING_MM = 2.0


def make_demo_cohort(folder: Path, scratch: Path, console: Console) -> Path:
    """Write the synthetic heads and their manifest, unless they exist.

    Parameters
    ----------
    folder : Path
    scratch : Path
        Folder on the same file system, in which the cohort is written until it is complete.
    console : Console

    Returns
    -------
    Path
        The manifest.

    Raises
    ------
    UserError
        The folder is in use for something else.
    """
    manifest = folder / "cohort.csv"
    if manifest.is_file():
        console.say(f"synthetic cohort: already in {private(folder)}")
        return manifest
    if os.path.lexists(folder) and not is_empty(folder):
        raise UserError(
            f"{private(folder, 'the folder of the synthetic cohort')}: is not empty, expected no such folder or an "
            "empty one. Choose another output folder."
        )
    from ...data_manifests.synthetic.phantoms import make_cohort

    console.say(f"synthetic cohort: {CONTROLS + HELD_OUT} healthy heads and {PATIENTS} patients with known lesions")
    with console.progress("phantoms", "head") as progress:
        made = make_cohort(
            scratch / folder.name,
            controls=CONTROLS,
            held_out=HELD_OUT,
            patients=PATIENTS,
            spacing_mm=SPACING_MM,
            seed=0,
            modalities=("t1w", "flair"),
            progress=progress,
        )
    os.replace(made.parent, folder)
    return manifest
