"""Writing of a MONAI bundle of a fitted model, and taking the model out again.

A bundle's configuration is code that MONAI runs. Taking a model out of a bundle reads none of it: only the packed
model, as data, once the bundle is as it was written.
"""

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.open_file import file_hash
from ...data_manifests.typed_json import Content, read_json
from ..api import load_model
from ..model.pack import pack
from ..model.pack_file import CARD, is_pack, opened_pack
from ..model.unpack import unpack
from ..workflow.folders import make_folder
from ..workflow.ownership import require_new_folder
from ..workflow.records import write_json
from ..workflow.scratch import scratch_folder
from .contents import CONFIGURATION, METADATA, MODEL, README, SCHEMA, configuration, meta, schema

CHECKSUMS = "configs/checksums.json"
_HOW = """\
# A MONAI bundle of a model of normal brain anatomy

Needs `pip install 'voxout[bundle]'`. It uses no network. In the folder of the bundle, maps of all scans of a folder:

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --dataset_dir SCANS --output_dir MAPS

SCANS is a folder of T1w scans, or a BIDS dataset. The maps are those of `voxout apply models/model.voxout`.

The configuration is code that MONAI runs: use a bundle only if you trust its sender. `voxout bundle import BUNDLE
FOLDER` takes the model out of it without running anything.

"""


class _Checksums(Content):
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


def export_bundle(model: Path, bundle: Path, licence: str | None = None) -> Path:
    """Write a fitted model as a MONAI bundle.

    Parameters
    ----------
    model : Path
        Output folder of the run that fitted it, or a packed model.
    bundle : Path
        A new folder.
    licence : str, optional
        Of the model, for its card, as ``"CC BY 4.0"``; a packed model has its own.

    Returns
    -------
    Path
        The bundle.

    Raises
    ------
    UserError
        No model, a folder that holds something, or a licence for a packed model.
    """
    require_new_folder(bundle)
    if is_pack(model) and licence is not None:
        raise UserError("--licence: found a packed model, which has its own licence, expected none. Leave it out.")
    make_folder(bundle.absolute().parent)
    with scratch_folder(bundle.absolute().parent) as scratch:
        staged = scratch / "bundle"
        for name in (MODEL, CONFIGURATION, README):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
        if is_pack(model):
            shutil.copyfile(model, staged / MODEL)
        else:
            pack(OutputFolder(model), staged / MODEL, licence)
        with opened_pack(staged / MODEL) as packed:
            about, card = packed.about, packed.read(CARD).decode()
        write_json(staged / CONFIGURATION, configuration())
        write_json(staged / METADATA, meta(load_model(staged / MODEL, device="cpu"), about))
        write_json(staged / SCHEMA, schema())
        (staged / README).write_text(_HOW + card)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        checksums = {path.relative_to(staged).as_posix(): file_hash(path) for path in files}
        write_json(staged / CHECKSUMS, {"files": checksums})
        staged.replace(bundle)
    return bundle


def import_bundle(bundle: Path, folder: Path) -> OutputFolder:
    """Take the model out of a bundle, into a new folder that is used like that of a run.

    Raises
    ------
    UserError
        No bundle that `export_bundle` wrote, one that was changed since, or a folder that holds something.
    """
    require_new_folder(folder)
    advice = "Ask for the bundle again, or give a packed model."
    checksums = read_json(bundle / CHECKSUMS, _Checksums, "the checksums of a bundle", advice).files
    for name in sorted({MODEL, CONFIGURATION} | checksums.keys()):
        path = bundle / name
        if not path.resolve().is_relative_to(bundle.resolve()) or not path.is_file():
            raise UserError(f"{private(bundle, 'the bundle')}: {name} is missing, expected a whole bundle. {advice}")
        if checksums.get(name) != file_hash(path):
            raise UserError(
                f"{private(bundle, 'the bundle')}: {name} was changed after the bundle was exported, expected it as it "
                f"was. {advice}"
            )
    return unpack(bundle / MODEL, folder)
