"""Options of `voxout apply` that say more of a single scan."""

import argparse

from ...data_manifests.errors import UserError

SCAN_OPTIONS = ("flair", "brain_mask", "age")


def require_usable_scan_options(options: argparse.Namespace) -> None:
    """Refuse options of a single scan for a cohort or a study, and those that the model cannot use.

    Raises
    ------
    UserError
        As named.
    """
    from ...data_manifests.cohort.output_paths import OutputFolder
    from ...data_manifests.cohort.single_scan import is_scan
    from ..config.config import load_config

    given = [f"--{name.replace('_', '-')}" for name in SCAN_OPTIONS if getattr(options, name) is not None]
    if not given:
        return
    if options.dicom or options.cohort.is_dir() or not is_scan(options.cohort):
        found, advice = "a cohort", "Use the columns of the table"
        if options.dicom:
            found, advice = "a DICOM study", "Choose its FLAIR with --flair-series; the age is not taken from it"
        raise UserError(f"{given[0]}: found {found}, expected a single scan. {advice}.")
    if options.age is not None and not 0 <= options.age <= 120:
        raise UserError(f"--age: found {options.age:g}, expected years from 0 to 120. Correct it.")
    settings = OutputFolder(options.model).fitted_config
    if options.flair is not None and settings.is_file():
        modalities = load_config(settings).preprocessing.modalities
        if "flair" not in modalities:
            raise UserError(
                f"--flair: found a model of {', '.join(modalities)} alone, expected one that uses the FLAIR. Leave out "
                "--flair, or fit a model with --set 'preprocessing.modalities=[t1w,flair]'."
            )
