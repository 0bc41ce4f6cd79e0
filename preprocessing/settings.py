"""Settings of the `preprocessing` section of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..data_manifests.settings import Section
from ..data_manifests.terms import Modality


class BrainExtractionSettings(Section):
    method: Literal["auto", "deepbet", "template", "given", "none"] = "auto"
    """`auto`: the manifest's mask if it names one; nothing to do if the scan is already stripped; else deepbet, deepbet
    on a copy in which the head stands upright where it is askew or the mask is not plausible, and template registration
    where that is not plausible either. `none`: every scan is taken as already stripped."""
    smallest_ml: Annotated[float, Field(gt=0)] = 800.0
    largest_ml: Annotated[float, Field(gt=0)] = 2200.0
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.89
    """Dice with the template's brain after a coarse affine fit, below which a mask that voxout found is not taken:
    brains reach 0.91 to 0.96, a mask that leaked into face or neck 0.88 at most."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest_ml >= self.largest_ml:
            raise ValueError(f"smallest_ml ({self.smallest_ml:g}) must lie below largest_ml ({self.largest_ml:g})")
        return self


class BiasFieldSettings(Section):
    enabled: bool = True
    spline_mm: Annotated[float, Field(gt=0)] = 200.0
    """Distance of the spline's control points at the coarsest level; halved at each of the next."""
    levels: Annotated[int, Field(ge=1, le=6)] = 3
    """A fourth level (25 mm) bends after the anatomy: it brightened the cerebellum's edge without end."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    working_spacing_mm: Annotated[float, Field(gt=0)] = 4.0
    """The field is smooth: it is estimated on a grid this coarse and applied at full resolution."""


class RegistrationSettings(Section):
    transform: Literal["syn", "affine"] = "syn"
    working_spacing_mm: Annotated[float, Field(ge=1, le=5)] = 2.0
    """Registration runs at this resolution; 1 mm brings no gain in overlap."""
    stiffness: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Variance, in squared voxels of each level, of the Gaussian that smooths the whole warp after every step of SyN
    (ANTs' total_sigma). 0 leaves the warp free; higher bends less: a lesion keeps more of its volume, and tissue
    overlaps less (measured in docs/preprocessing.md)."""
    exclude_lesions: bool = False
    """Leave the manifest's lesion mask, slightly dilated, out of what the registration looks at, so that lesions are
    not warped away. Off, because the masks of an evaluation are the truth, which must not leak into the maps that
    are judged by it; switch it on for lesions that are known beforehand, such as resection cavities."""
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Dice of the warped brain with the template's brain, below which a subject fails."""
    smallest_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """Correlation of the warped T1w with the template's inside the template's brain, below which a subject fails."""


class IntensitySettings(Section):
    """Percentiles of the brain's intensities that become 0 and 1."""

    low_percent: Annotated[float, Field(ge=0, lt=100)] = 0.5
    high_percent: Annotated[float, Field(gt=0, le=100)] = 99.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_percent >= self.high_percent:
            raise ValueError(f"low_percent ({self.low_percent:g}) must lie below high_percent ({self.high_percent:g})")
        return self


class PreprocessingSettings(Section):
    """From a head scan to a normalised brain on the template grid."""

    spacing_mm: Annotated[float, Field(ge=0.5, le=5)] = 2.0
    """Edge length of the template grid's voxels."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("t1w",)
    """In the order of the channels. The T1w leads extraction and registration whether or not it is among them."""
    brain_extraction: BrainExtractionSettings = BrainExtractionSettings()
    bias_field: BiasFieldSettings = BiasFieldSettings()
    registration: RegistrationSettings = RegistrationSettings()
    intensity: IntensitySettings = IntensitySettings()

    @model_validator(mode="after")
    def _each_modality_once(self) -> Self:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {', '.join(self.modalities)}")
        return self
