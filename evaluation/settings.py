"""Settings of the `evaluation` section of a configuration."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..data_manifests.settings import Section


def _ascending(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if any(high <= low for low, high in pairwise(bounds)):
        raise ValueError("numbers that ascend")
    return bounds


class EvaluationSettings(Section):
    space: Literal["native", "template"] = "native"
    """Where maps meet masks. `native` needs no resampled truth."""
    smallest_lesion_mm3: Annotated[float, Field(ge=0)] = 0.0
    """Smaller components of the truth are not counted as lesions; their voxels stay part of the truth."""
    smallest_cluster_mm3: Annotated[float, Field(ge=0)] = 30.0
    """Smaller components of a thresholded map are not counted as detections."""
    false_clusters: Annotated[float, Field(gt=0)] = 1.0
    """The operating point: at most this many false clusters in a held-out healthy brain, on average."""
    recalibrate: bool = False
    """For `voxout apply`: set the threshold on the healthy scans of the new cohort instead of taking the model's.
    Needs 20 healthy scans."""
    false_discovery_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """What a subject's page calls surviving: Benjamini and Hochberg, over the voxels of the one brain."""
    p_maps: bool = False
    """Write -log10 p and -log10 q beside every z-map."""
    lesion_bands_ml: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(_ascending)] = (0.1, 1.0, 10.0)
    """Where one band of lesion volume ends and the next begins."""
    age_bands: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(_ascending)] = (40.0, 60.0, 75.0)
    """The same for the subjects' age, in years."""
    bootstrap_draws: Annotated[int, Field(ge=20)] = 1000
    """Draws of subjects, with replacement, behind every interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the draws that an interval holds."""
