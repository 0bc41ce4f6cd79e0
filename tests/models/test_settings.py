import pytest
from pydantic import ValidationError
from voxout.models.settings import EncoderSettings, ModelSettings, resolve_gamma


@pytest.mark.parametrize(
    ("gamma", "value"),
    [(0.5, 0.5), ("0.1/d", 0.1 / 16), (" 1e-1 / d ", 0.1 / 16), ("scale", "scale"), ("auto", "auto")],
)
def test_gamma(gamma, value):
    assert resolve_gamma(gamma, 16) == value


@pytest.mark.parametrize("gamma", [0, -1, "wide", "0/d", "1/e", float("inf"), float("nan")])
def test_invalid_gamma(gamma):
    with pytest.raises(ValidationError, match="gamma is"):
        ModelSettings.model_validate({"detector": {"gamma": gamma}})


def test_training_without_reconstruction_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ModelSettings.model_validate({"training": {"pretraining_steps": 0}})


def test_one_patch_size_or_several():
    assert EncoderSettings().patch_size_mm == (6.0,)
    assert EncoderSettings.model_validate({"patch_size_mm": 10}).patch_size_mm == (10.0,)
    assert EncoderSettings(patch_size_mm=[6, 10]).patch_size_mm == (6.0, 10.0)
    for wrong in (-1, [], [6, -1], "wide"):
        with pytest.raises(ValidationError) as error:
            EncoderSettings.model_validate({"patch_size_mm": wrong})
        assert error.value.error_count() == 1
    for planes in ([], ["axial", "axial"]):
        with pytest.raises(ValidationError):
            EncoderSettings.model_validate({"planes": planes})


def test_duplicate_scorers_are_refused():
    with pytest.raises(ValidationError, match="contains duplicates: ocsvm, ocsvm"):
        ModelSettings.model_validate({"ensemble": {"scorers": ["ocsvm", "ocsvm"]}})
