"""Whether a folder holds a model that can be applied."""

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.errors import UserError
from .records import StageRecord

FORMAT = 2
"""Of the files of a fitted model. A model of another one is fitted again."""
MODEL_FORMAT = "the format of models"
"""What it is called among the inputs of the stage fit."""


def require_whole_model(model: OutputFolder) -> None:
    """Refuse a model whose encoder and detectors are missing, damaged, or not of one run.

    Raises
    ------
    UserError
        So it is.
    """
    train, fit = StageRecord.read(model.record("train")), StageRecord.read(model.record("fit"))
    fitted_on = fit and fit.inputs.get("the encoder")
    if fit is None or (fitted_on and train is None):
        raise UserError(f"{model.root}: holds no fitted model. Name the folder that `voxout run` wrote.")
    if (found := fit.inputs.get(MODEL_FORMAT, 1)) != FORMAT:
        raise UserError(
            f"{model.root}: its model was fitted by another version of voxout (format {found}, expected {FORMAT}). Run "
            "`voxout run` there again."
        )
    # The codes that the detectors were fitted on may stay behind; and so may an encoder that no reader needs.
    whole = fit.whole(model.root, under=f"{model.detectors.relative_to(model.root)}/")
    if not whole or (fitted_on and train and not train.whole(model.root)):
        raise UserError(f"{model.root}: files are missing from the model or damaged. Run `voxout run` there again.")
    if fitted_on and train and fitted_on != train.identity:
        raise UserError(f"{model.root}: the encoder was trained again after fit. Run `voxout run` there again.")
