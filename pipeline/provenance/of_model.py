"""Descriptions of models: a packed one, and that of an output folder."""

from dataclasses import replace
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, without_names
from ...data_manifests.open_file import file_hash
from ..model.anomaly_model import AnomalyModel
from ..model.model_card import about_model, model_card, model_facts
from ..model.model_files import checksums_of
from ..model.pack_file import CARD, opened_pack
from ..model.unpack import records_of
from ..model.whole_model import require_whole_model
from ..workflow.stage_inputs import fit_identity
from .description import Description


def of_packed(path: Path) -> Description:
    """Describe a packed model, after all its entries were compared with their checksums.

    Raises
    ------
    UserError
        No packed model, or a damaged one.
    """
    with opened_pack(path) as packed:
        content = {name: packed.read(name) for name in packed.names}
        _, fit = records_of(packed)
        about = packed.about
        told = {"licence": about.licence, "note": about.note}
        return Description(
            name=path.name,
            holds=f"packed model, fitted on {about.fitted or 'an unknown day'} to {about.controls} healthy scans; maps "
            f"name it as Fit {fit.identity}",
            command=f"voxout model pack (version {packed.packed_by})",
            versions=about.versions,
            size=path.stat().st_size,
            sha256=file_hash(path),
            state=f"{len(packed.names)} files, all as their checksums say",
            model={"controls": str(about.controls), "fitted": about.fitted} | {k: v for k, v in told.items() if v},
            checksums=packed.checksums,
            model_card=content[CARD].decode(),
        )


def with_model(folder: Description, out: OutputFolder) -> Description:
    """Add the card of the model of an output folder, or why it has none that can be used."""
    try:
        fitted = require_whole_model(out)
        loaded = AnomalyModel.load(out, fitted.config, "cpu").with_stored_threshold(out)
    except UserError as error:
        return replace(folder, notes=(*folder.notes, *map(without_names, error.problems)))
    about, checksums = about_model(out, loaded), checksums_of(out)
    return replace(
        folder,
        state=f"its model is as fit wrote it ({len(checksums)} files); maps name it as Fit {fit_identity(out)}",
        model=model_facts(loaded, about),
        checksums=checksums,
        model_card=model_card(loaded, about, None),
    )
