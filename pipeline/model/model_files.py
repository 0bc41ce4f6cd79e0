"""Files of a fitted model, and checks that they are unchanged and lie in the model's folder.

The stage fit writes the size and SHA-256 of each file to one record in the folder of the detectors. Before a model is
used, its files are compared with this record: once per process, and again if size, time or inode change.
"""

import os
import shutil
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, RootModel

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.open_file import file_hash
from ...data_manifests.typed_json import Content, read_json
from ...models.anomaly import scanner
from ...models.anomaly.ensemble import LEARNT
from ...models.labels import fusion
from ..workflow.records import StageRecord, write_json

_RECORD = "model.json"
_FORMAT = "voxout model 1"
CONTROLS = "controls"
"""Name of the number of training controls among the inputs of the stage fit of an unpacked or an adapted model."""
_ADVICE = "Copy the model again, or run `voxout fit` there again."


class _File(Content):
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _ModelRecord(Content):
    format: Literal["voxout model 1"]
    files: dict[str, _File]


class _TrainedOn(RootModel[list[str]]):
    pass


def write_model_record(model: OutputFolder, *, encoders: bool) -> None:
    """Record every file of a model that was just fitted; `encoders`: whether its scorers use the encoder."""
    files = {
        name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in sorted(_files(model, encoders).items())
    }
    write_json(model.detectors / _RECORD, {"format": _FORMAT, "files": files})


def require_files_of_model(model: OutputFolder) -> None:
    """Refuse a model whose files are not those written by fit.

    Raises
    ------
    UserError
        The record is missing or damaged, or a file is missing, added, damaged or changed.
    """
    recorded = _recorded(model)
    found = _files(model, any(name.startswith("encoder/") for name in recorded))
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{private(model.root, 'the model')}: {name} is missing from the model. {_ADVICE}")
        if name not in recorded:
            raise UserError(
                f"{private(model.root, 'the model')}: {name} is not among the files that fit wrote. Delete it, "
                f"or: {_ADVICE}"
            )
        state = found[name].stat()
        # Compare the size first, since it needs no reading.
        if state.st_size != recorded[name].size or _sha256(found[name]) != recorded[name].sha256:
            raise UserError(
                f"{private(model.root, 'the model')}: {name} is not the file that fit wrote (changed or "
                f"damaged since). {_ADVICE}"
            )


def require_inside(model: OutputFolder) -> None:
    """Refuse a model with links that lead out of its folder, or with pipes or devices among its files.

    Raises
    ------
    UserError
    """
    root = model.root.resolve()
    for folder in (model.encoder, model.detectors, model.record("fit").parent):
        inner = (Path(place) / name for place, folders, files in os.walk(folder) for name in (*folders, *files))
        for path in (folder, *inner):
            name = path.relative_to(model.root)
            if not Path(os.path.realpath(path)).is_relative_to(root):
                raise UserError(
                    f"{private(model.root, 'the model')}: {name} is a link that leads out of the model's folder, "
                    "expected the file itself. Copy the model again, with the linked files (as `cp -rL` does)."
                )
            if path.exists() and not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
                raise UserError(f"{private(model.root, 'the model')}: {name} is neither a file nor a folder. {_ADVICE}")


def read_trained_on(model: OutputFolder) -> frozenset[str]:
    """Return the hashes of the scans that a model was trained on.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    return frozenset(read_json(model.trained_on, _TrainedOn, "hashes of the training controls' scans", _ADVICE).root)


def copy_model(model: OutputFolder, out: OutputFolder) -> bool:
    """Copy the files of a model, but for its records, to the folders of another one.

    Returns
    -------
    bool
        Whether it has encoders.

    Raises
    ------
    UserError
        See `require_files_of_model`.
    """
    require_files_of_model(model)
    folders, names = {"detectors": out.detectors, "encoder": out.encoder}, list(_recorded(model))
    for name in names:
        part, _, inner = name.partition("/")
        if part in folders:
            target = folders[part] / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.root / name, target)
    return any(name.startswith("encoder/") for name in names)


def checksums_of(model: OutputFolder) -> dict[str, str]:
    """Return the SHA-256 of each file of a model, as recorded."""
    return {name: file.sha256 for name, file in _recorded(model).items()}


def number_of_controls(model: OutputFolder) -> int:
    """Return on how many scans a model was fitted."""
    record = StageRecord.read(model.record("fit"))
    return record.inputs.get(CONTROLS, len(read_trained_on(model))) if record else len(read_trained_on(model))


def adapted_on(model: OutputFolder) -> int | None:
    """Return on how many healthy scans a model was adapted to their scanner; None if it was not.

    Raises
    ------
    UserError
        The file of the adaptation is damaged.
    """
    path = model.detectors / scanner.FILE
    return scanner.read_controls(path) if path.exists() else None


def labelled_patients(model: OutputFolder) -> int | None:
    """Return to how many labelled patients a model was adapted; None if it was not.

    Raises
    ------
    UserError
        The file of the adaptation is damaged.
    """
    path = model.detectors / LEARNT / fusion.FILE
    return fusion.read_patients(path) if path.exists() else None


def _recorded(model: OutputFolder) -> dict[str, _File]:
    return read_json(model.detectors / _RECORD, _ModelRecord, "the record of a model's files", _ADVICE).files


def _files(model: OutputFolder, encoders: bool) -> dict[str, Path]:
    """Return all files of a model, by name in its folder. Names that start with a dot belong to other programs."""
    found = {
        f"detectors/{path.relative_to(model.detectors).as_posix()}": path
        for path in model.detectors.rglob("[!.]*")
        if path.is_file() and path != model.detectors / _RECORD
    }
    if encoders:
        for path in (*model.encoder.rglob("checkpoint.json"), *model.encoder.rglob("step-*.safetensors")):
            found[f"encoder/{path.relative_to(model.encoder).as_posix()}"] = path
        found["records/train.json"] = model.record("train")
    return {name: path for name, path in found.items() if path.is_file()}


_known: dict[tuple[int, int, int, int], str] = {}


def _sha256(path: Path) -> str:
    state = path.stat()
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if identity not in _known:
        _known[identity] = file_hash(path)
    return _known[identity]
