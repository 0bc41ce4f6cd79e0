"""Settings of the `evaluation` section of a configuration."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from ..data_manifests.settings import Section


def _ascending(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if any(high <= low for low, high in pairwise(bounds)):
        raise ValueError("numbers in ascending order")
    return bounds


Bands = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=20), AfterValidator(_ascending)]
"""Boundaries of bands, ascending."""


class EvaluationSettings(Section):
    """Settings of thresholds, scores and pages."""

    space: Literal["native", "template"] = "native"
    """Space in which maps are compared with lesion masks. `native` avoids resampling the masks."""
    smallest_lesion_mm3: Annotated[float, Field(ge=0, le=1e7)] = 0.0
    """Smaller components of a lesion mask are not counted as lesions; their voxels stay part of the truth."""
    smallest_cluster_mm3: Annotated[float, Field(ge=0, le=1e7)] = 30.0
    """Smaller components of a thresholded map are not counted as detections."""
    false_clusters: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """Operating point: false-positive clusters allowed per healthy brain, on average."""
    recalibrate: bool = False
    """For `voxout apply`: set the threshold on the healthy scans of the new cohort (at least 20) instead of using the
    model's threshold."""
    p_maps: bool = False
    """Also write maps of -log10 p and -log10 q for every z-map (docs/maps.md#p-values-and-the-false-discovery-rate)."""
    lesion_bands_ml: Bands = (0.1, 1.0, 10.0)
    """Boundaries of the lesion-volume bands, in ml."""
    age_bands: Bands = (40.0, 60.0, 75.0)
    """Boundaries of the age bands, in years."""
    page_scan: Literal["head", "brain"] = "head"
    """What a subject's page holds of the scan: all of it, with the face if the scan has one, or the brain alone."""
    keep_scan_places: bool = False
    """When a model is applied, keep the paths of the scans, so that a later call can show the subjects on their own
    scans again; without it, their pages then show the template alone. A path may hold a name (docs/privacy.md)."""
    bootstrap_draws: Annotated[int, Field(ge=20, le=100_000)] = 1000
    """Number of bootstrap samples for every interval; subjects are drawn with replacement."""

    removed: ClassVar = {"false_discovery_rate": 0.05, "confidence": 0.95}
