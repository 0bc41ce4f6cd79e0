"""Settings of runs on small phantoms: all stages, as coarse as they work, in seconds."""

from collections.abc import Mapping

SETTINGS: dict[str, object] = {
    "preprocessing.spacing_mm": 4.0,
    "preprocessing.registration.transform": "affine",
    "preprocessing.registration.working_spacing_mm": 4.0,
    "preprocessing.registration.smallest_similarity": 0.2,
    "preprocessing.bias_field.working_spacing_mm": 16.0,
    "models.ensemble.scorers": "[patches, extension]",
    "evaluation.bootstrap_draws": 50,
}
ALL_CONTROLS_FIT: dict[str, object] = {"data_manifests.held_out_share": 0}
"""No control is held out."""


def as_arguments(settings: Mapping[str, object]) -> list[str]:
    """Return settings as arguments of a command."""
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
