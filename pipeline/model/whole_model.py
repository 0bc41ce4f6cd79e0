"""Check that a folder holds a complete model that can be applied."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import Content, read_json
from ...evaluation.scoring.operating_point import StoredPoint
from ..config.config import GivenSettings, read_settings
from ..workflow.records import StageRecord
from .model_files import read_trained_on, require_files_of_model, require_inside

FORMAT = 6
"""Format of the files of a fitted model. A model of another format has to be fitted again."""
MODEL_FORMAT = "the format of models"
"""Name of the format among the inputs of the stage fit."""
_MAX_SETTINGS_BYTES = 1_000_000


class _Record(Content):
    """Fields of a stage's record that are checked."""

    model_config = ConfigDict(extra="ignore")

    stage: str
    inputs: dict[str, Any]
    outputs: dict[str, Annotated[int, Field(ge=0)]]
    started: str


def require_whole_model(model: OutputFolder) -> GivenSettings:
    """Require a complete model, with encoder and detectors of one run, unchanged and inside its folder.

    Returns
    -------
    GivenSettings
        The settings it was fitted with.

    Raises
    ------
    UserError
        A file is missing, damaged, changed, from another run, or outside of the folder.
    """
    try:
        return _require_whole_model(model)
    except OSError as error:
        raise UserError(
            f"{private(model.root, 'the model')}: its files cannot be read ({error.strerror}). Check the permissions, "
            "or copy the model again."
        ) from error


def _require_whole_model(model: OutputFolder) -> GivenSettings:
    require_inside(model)
    train, fit = _record(model, "train"), _record(model, "fit")
    fitted_on = fit and fit.inputs.get("the encoder")
    if fit is None or (fitted_on and train is None):
        what = "holds no fitted model" if model.root.exists() else "no such file or folder"
        raise UserError(
            f"{private(model.root, 'the model')}: {what}, expected the output folder of `voxout run` or of `voxout "
            "adapt-scanner`, or a packed model (.voxout). Check the path."
        )
    if (found := fit.inputs.get(MODEL_FORMAT, 1)) != FORMAT:
        raise UserError(
            f"{private(model.root, 'the model')}: its model was fitted by another version of voxout (format {found}, "
            f"expected {FORMAT}). Run `voxout run` there again."
        )
    # The training latents are not needed, nor is an encoder that no scorer uses.
    complete = fit.is_complete(model.root, under=f"{model.detectors.relative_to(model.root)}/")
    if not complete or (fitted_on and train and not train.is_complete(model.root)):
        raise UserError(
            f"{private(model.root, 'the model')}: files are missing from the model or damaged. Run `voxout run` there "
            "again."
        )
    if fitted_on and train and fitted_on != train.identity:
        raise UserError(
            f"{private(model.root, 'the model')}: the encoder was trained again after fit. Run `voxout run` there "
            "again."
        )
    require_files_of_model(model)
    read_trained_on(model)
    StoredPoint.load(model.operating_point)
    return _fitted_settings(model.fitted_config)


def _record(model: OutputFolder, stage: str) -> StageRecord | None:
    path = model.record(stage)
    if not path.exists():
        return None
    advice = "Copy the model again, or run `voxout run` there again."
    read_json(path, _Record, f"the record of the stage {stage}", advice)
    record = StageRecord.read(path)
    if record is None:
        raise UserError(f"{private(path)}: not readable as the record of the stage {stage}. {advice}")
    return record


def _fitted_settings(path: Path) -> GivenSettings:
    try:
        if path.stat().st_size > _MAX_SETTINGS_BYTES:
            raise UserError(f"found {path.stat().st_size:,} bytes, expected at most {_MAX_SETTINGS_BYTES:,}.")
        given = read_settings(path, saved_file=True)
    except UserError as error:
        raise UserError(
            [f"{private(path)}: not the settings of a model: {problem}" for problem in error.problems]
        ) from error
    except RecursionError as error:
        raise UserError(f"{private(path)}: not the settings of a model: nested too deeply.") from error
    # Others act in the fit only.
    if acting := [name for name in given.dropped if name.startswith("preprocessing.")]:
        raise UserError(
            f"{private(path)}: the model was fitted with {acting[0]} = {given.dropped[acting[0]]}, which is no longer "
            "a setting. Run `voxout run` on its cohort again."
        )
    return given
