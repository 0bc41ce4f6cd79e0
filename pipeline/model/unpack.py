"""Unpacking of a packed model into a folder, as `voxout run` would have written it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume, write_volume
from ...data_manifests.user_paths import real
from ...evaluation.scoring.operating_point import StoredPoint
from ...models.quantised import read_quantised, read_units
from ...models.tensor_file import opened_tensors
from ..config.config import read_settings, save_config
from ..workflow.folders import make_folder
from ..workflow.ownership import claimed, require_apart, require_new_folder
from ..workflow.records import StageRecord, write_json
from ..workflow.scratch import scratch_folder
from . import anomaly_model
from .model_files import CONTROLS, write_model_record
from .pack_file import BRAIN_MASK, CARD, SETTINGS, THRESHOLD, UNITS, PackFile, is_pack, opened_pack
from .whole_model import FORMAT, MODEL_FORMAT, require_whole_model

_LARGEST_AXIS = 2000
"""Voxels along an axis of a brain mask."""


def unpack(path: Path, folder: Path) -> OutputFolder:
    """Unpack a model into a new folder, which can be used like that of a run.

    Raises
    ------
    UserError
        Not a packed model, or a damaged one; or a folder that holds something.
    """
    require_new_folder(folder)
    with opened_pack(path) as packed:
        make_folder(folder.absolute().parent)
        with scratch_folder(folder.absolute().parent) as scratch:
            model = _write_model(packed, scratch / "model")
            model.root.replace(folder)
    return OutputFolder(folder)


def read_card(path: Path) -> str:
    """Return the model card of a packed model, after all its entries were compared with their checksums."""
    with opened_pack(path) as packed:
        return {name: packed.read(name) for name in packed.names}[CARD].decode()


@contextmanager
def model_folder(path: Path, out: Path | None = None) -> Iterator[OutputFolder]:
    """Yield the folder of a model; that of a packed one is a temporary folder.

    Parameters
    ----------
    path : Path
        The folder of a model, or a packed one.
    out : Path, optional
        Output folder, in which the temporary folder is made; by default in the system's.

    Raises
    ------
    UserError
        No model, or a damaged one.
    """
    if not is_pack(path):
        yield OutputFolder(path)
        return
    with opened_pack(path) as packed:
        if out is None:
            with tempfile.TemporaryDirectory(prefix="voxout-") as temporary:
                yield _write_model(packed, Path(temporary) / "model")
            return
        require_apart(out, {"the model": path})
        with claimed(out), scratch_folder(out) as scratch:
            yield _write_model(packed, scratch / "model")


@contextmanager
def model_to_apply(model: Path, out: Path, *, dry_run: bool = False) -> Iterator[Path]:
    """Yield the folder of a model that is applied in an output folder; a packed one is unpacked there for the time.

    Raises
    ------
    UserError
        No model, a damaged one, or an output folder within its folder.
    """
    if is_pack(model):
        with model_folder(model, None if dry_run else out) as unpacked:
            yield unpacked.root
        return
    require_whole_model(OutputFolder(model))
    if real(out).is_relative_to(real(model)):
        raise UserError(
            f"{private(out, 'the output folder')}: lies in the model's own folder, expected a separate folder. "
            "Choose another output folder."
        )
    yield model


def _write_model(packed: PackFile, root: Path) -> OutputFolder:
    about = packed.about
    if about.model_format != FORMAT:
        raise UserError(
            f"{private(packed.path)}: its model was fitted by another version of voxout (format {about.model_format}, "
            f"expected {FORMAT}). Ask for a model that was fitted with this version."
        )
    names = set(packed.names)
    if missing := {CARD, SETTINGS, BRAIN_MASK, "detectors/channels.json"} - names:
        raise UserError(f"{private(packed.path)}: {min(missing)} is missing, expected a whole model. Pack it again.")
    model = OutputFolder(root)
    root.mkdir()
    for name in sorted(names):
        packed.extract(name, model.operating_point if name == THRESHOLD else root / name)
    try:
        _restore_arrays(model)
        _restore_settings(model)
        _restore_brain_mask(model)
        write_json(model.trained_on, [])
        _write_records(packed, model)
        require_whole_model(model)
    except UserError as error:
        # Its sentence names a file in a temporary folder.
        raise UserError(
            f"{private(packed.path)}: holds other content than a model, expected what `voxout model pack` wrote. Do "
            "not use it."
        ) from error
    return model


def _restore_arrays(model: OutputFolder) -> None:
    """Replace the whole numbers in the files of the detectors by the arrays of a model."""
    for path in sorted(model.detectors.rglob("*.safetensors")):
        if path.name != UNITS:
            units = path.with_name(UNITS)
            read_quantised(path, path, units=read_units(units) if units.exists() else None)
    for path in list(model.detectors.rglob(UNITS)):
        path.unlink()


def _restore_settings(model: OutputFolder) -> None:
    settings = model.root / SETTINGS
    save_config(model.fitted_config, read_settings(settings, saved_file=True).config)
    settings.unlink()


def _restore_brain_mask(model: OutputFolder) -> None:
    file = model.root / BRAIN_MASK
    with opened_tensors(file, "brain mask of a packed model") as tensors:
        size = tuple(map(int, tensors.metadata["size_vox"].split()))
        bits, affine = tensors.array("voxels", "uint8", 1), tensors.array("affine", "float64", 2)
        if len(size) != 3 or not all(0 < length <= _LARGEST_AXIS for length in size) or affine.shape != (4, 4):
            raise ValueError(f"its grid is {size}, expected three axes")
        if len(bits) != -(-int(np.prod(size)) // 8):
            raise ValueError(f"it has {len(bits)} bytes, which do not match {size}")
        voxels = np.unpackbits(bits, count=int(np.prod(size))).astype(bool).reshape(size)
    write_volume(model.detectors / anomaly_model.BRAIN_MASK, Volume(voxels, Grid(size, affine)))
    file.unlink()


def records_of(packed: PackFile) -> tuple[StageRecord | None, StageRecord]:
    """Return the records of the stages train (None without an encoder) and fit of a packed model once unpacked.

    The same packed model always has the same identity.
    """
    about, train = packed.about, None
    inputs = {MODEL_FORMAT: about.model_format, "the packed model": packed.identity, CONTROLS: about.controls}
    if about.members:
        train = StageRecord("train", {"the packed model": packed.identity}, {}, started=about.fitted)
        inputs["the encoder"] = train.identity
    return train, StageRecord("fit", inputs, {}, started=about.fitted, versions=about.versions)


def _write_records(packed: PackFile, model: OutputFolder) -> None:
    train, fit = records_of(packed)
    if train is not None:
        train.write(model.record("train"))
    write_model_record(model, encoders=train is not None)
    fit.write(model.record("fit"))
    if (point := StoredPoint.load(model.operating_point)) is not None:
        replace(point, model=fit.identity).save(model.operating_point)
