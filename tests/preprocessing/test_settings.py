import pytest
from pydantic import ValidationError
from voxout.preprocessing.settings import (
    BrainExtractionSettings,
    IntensitySettings,
    PreprocessingSettings,
    QualitySettings,
)


def test_defaults_are_valid_and_frozen():
    settings = PreprocessingSettings()
    assert settings.modalities == ("t1w",)
    with pytest.raises(ValidationError):
        settings.spacing_mm = 1.0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: IntensitySettings(low_percent=50, high_percent=50),
            "low_percent (50) must lie below high_percent (50)",
        ),
        (lambda: BrainExtractionSettings(smallest_ml=3000), "smallest_ml (3000) must lie below largest_ml (2200)"),
        (
            lambda: QualitySettings(largest_brain_ml=500),
            "smallest_brain_ml (1000) must lie below largest_brain_ml (500)",
        ),
        (lambda: PreprocessingSettings(modalities=("t1w", "t1w")), "modalities names one twice: t1w, t1w"),
        (
            lambda: PreprocessingSettings(derived_maps=("junction", "junction")),
            "derived_maps names one twice: junction, junction",
        ),
        (lambda: PreprocessingSettings(modalities=()), "at least 1 item"),
    ],
)
def test_contradictions_are_told(make, messages):
    with pytest.raises(ValidationError) as caught:
        make()
    assert messages in str(caught.value)
