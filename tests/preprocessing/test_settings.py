import pytest
from pydantic import ValidationError
from voxout.preprocessing.settings import (
    BrainExtractionSettings,
    PreprocessingSettings,
    QualitySettings,
)


def test_defaults_are_valid_and_frozen():
    settings = PreprocessingSettings()
    assert settings.modalities == ("t1w",)
    with pytest.raises(ValidationError):
        settings.spacing_mm = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BrainExtractionSettings(smallest_ml=3000), "smallest_ml (3000) must be less than largest_ml (2200)"),
        (
            lambda: QualitySettings(largest_brain_ml=500),
            "smallest_brain_ml (1000) must be less than largest_brain_ml (500)",
        ),
        (lambda: PreprocessingSettings(modalities=("t1w", "t1w")), "modalities has a duplicate: t1w, t1w"),
        (
            lambda: PreprocessingSettings(derived_maps=("junction", "junction")),
            "derived_maps has a duplicate: junction, junction",
        ),
        (lambda: PreprocessingSettings(modalities=()), "at least 1 item"),
    ],
)
def test_contradictory_settings_are_rejected(make, message):
    with pytest.raises(ValidationError) as caught:
        make()
    assert message in str(caught.value)
