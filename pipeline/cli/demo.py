"""Synthetic cohort of `voxout demo`: heads with known lesions."""

from pathlib import Path

from ...data_manifests.errors import private
from ..workflow.console import Console

CONTROLS, HELD_OUT, PATIENTS = 14, 3, 4


def make_demo_cohort(folder: Path, console: Console) -> Path:
    """Write the synthetic heads and their manifest, unless they exist.

    Returns
    -------
    Path
        The manifest.
    """
    manifest = folder / "cohort.csv"
    if manifest.is_file():
        console.say(f"synthetic cohort: already in {private(folder)}")
        return manifest
    from ...data_manifests.synthetic.phantoms import make_cohort

    console.say(f"synthetic cohort: {CONTROLS + HELD_OUT} healthy heads and {PATIENTS} patients with known lesions")
    with console.progress("phantoms", "head") as progress:
        return make_cohort(
            folder,
            controls=CONTROLS,
            held_out=HELD_OUT,
            patients=PATIENTS,
            spacing_mm=2.0,
            seed=0,
            modalities=("t1w", "flair"),
            progress=progress,
        )
