"""Settings of the `preprocessing` section of a configuration."""

import shlex
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ..data_manifests.settings import OldValues, Section
from ..data_manifests.terms import Modality


class BrainExtractionSettings(Section):
    method: Literal["auto", "deepbet", "hdbet", "command", "template", "given", "none"] = "auto"
    """`auto`: the manifest's mask if it names one; nothing to do if the scan is already stripped; else deepbet, deepbet
    on a copy in which the head stands upright where it is askew or the mask is not plausible, and template registration
    where that is not plausible either. `hdbet`: HD-BET, an extra, for scans with much pathology; `command`: the site's
    own program. `none`: every scan is taken as already stripped."""
    command: str = ""
    """For method `command`: its command line, in which {image} and {mask} stand for the NIfTI files to read and to
    write; braces that the program itself is to see are doubled. Weights lie where the command says; nothing is
    downloaded."""
    smallest_ml: Annotated[float, Field(gt=0)] = 800.0
    largest_ml: Annotated[float, Field(gt=0)] = 2200.0
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.89
    """Dice with the template's brain after a coarse affine fit, below which a mask that voxout found is not taken:
    brains reach 0.91 to 0.96, a mask that leaked into face or neck 0.88 at most."""

    @model_validator(mode="after")
    def _command_with_both_files(self) -> Self:
        if self.method != "command":
            return self
        found = f'method is command and command is "{self.command}"'
        try:
            named = {name for _, name, _, _ in Formatter().parse(self.command) if name is not None}
        except ValueError as error:
            raise ValueError(
                f"{found}, which has a brace without its other half; double the braces that the program is to see"
            ) from error
        if not {"image", "mask"} <= named:
            raise ValueError(
                f"{found}, expected a command line with {{image}} and {{mask}} in it, as in mri_synthstrip "
                "-i {image} -m {mask}"
            )
        if others := sorted(named - {"image", "mask"}):
            raise ValueError(
                f"{found}, which has {{{others[0]}}} in it, expected {{image}} and {{mask}} alone in braces; double "
                "those that the program is to see"
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"{found}, which cannot be split into words ({error}); close its quotes") from error
        return self

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
    transform: Literal["syn", "affine", "none"] = "syn"
    """`none`: the images are in the template's space already."""
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
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Dice of the warped brain with the template's brain, below which a subject fails."""
    smallest_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.35
    """Correlation of the warped T1w with the template's inside the template's brain, below which a subject fails. A
    brain with large ventricles that lies right may have 0.46; one that is turned by 20 degrees has less than 0.35."""


IntensityMethod = Literal["percentiles", "z_score", "white_matter", "nyul"]


DerivedMapName = Literal["junction", "extension", "detail", "fineness"]


class IntensitySettings(Section):
    """How intensities come onto one scale."""

    method: Annotated[IntensityMethod, BeforeValidator(OldValues({"landmarks": "nyul"}))] = "nyul"
    """What all brains are brought to have in common, beyond the two percentiles: see `standardisation`."""
    low_percent: Annotated[float, Field(ge=0, lt=100)] = 0.5
    """Percentiles of the brain's intensities that become 0 and 1 in the prepared image."""
    high_percent: Annotated[float, Field(gt=0, le=100)] = 99.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_percent >= self.high_percent:
            raise ValueError(f"low_percent ({self.low_percent:g}) must lie below high_percent ({self.high_percent:g})")
        return self


class QualitySettings(Section):
    """Limits of what is usual: a number outside them warns. `RegistrationSettings` holds those that fail.

    Set where they let about 99 of 100 good preparations pass: 82 heads of IXI and of the MS patients, 16 elderly heads
    with large ventricles and 2 tumours, their pictures looked through, rounded outwards. All are adults, and most are
    of one scanner: other cohorts may need others. `benchmarks/quality.py` shows what the limits catch.
    """

    smallest_brain_ml: Annotated[float, Field(ge=0)] = 1000.0
    largest_brain_ml: Annotated[float, Field(gt=0)] = 1900.0
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Dice of the warped brain with the template's brain."""
    smallest_coverage: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of the template's brain inside the warped brain mask."""
    smallest_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.55
    """Correlation of the warped T1w with the template's."""
    smallest_white_matter_overlap: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Dice of the warped bright tissue with the template's white matter."""
    smallest_jacobian: Annotated[float, Field(ge=0)] = 0.55
    """Local change of volume by the warp: its first percentile in the brain."""
    largest_jacobian: Annotated[float, Field(gt=0)] = 2.5
    """The same: its 99th percentile."""
    largest_noise: Annotated[float, Field(gt=0)] = 0.08
    """SD of the noise over the mean, in white matter."""
    largest_dark_share: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the brain mask darker than a tenth of the brain's median."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest_brain_ml >= self.largest_brain_ml:
            raise ValueError(
                f"smallest_brain_ml ({self.smallest_brain_ml:g}) must lie below largest_brain_ml "
                f"({self.largest_brain_ml:g})"
            )
        return self


class PreprocessingSettings(Section):
    """From a head scan to a normalised brain on the template grid."""

    spacing_mm: Annotated[float, Field(ge=0.5, le=5)] = 2.0
    """Edge length of the template grid's voxels."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("t1w",)
    """In the order of the channels. The T1w leads extraction and registration whether or not it is among them."""
    derived_maps: tuple[DerivedMapName, ...] = ("junction", "extension", "detail", "fineness")
    """Maps computed from every modality, as channels after the modalities: see `derived_maps`."""
    brain_extraction: BrainExtractionSettings = BrainExtractionSettings()
    bias_field: BiasFieldSettings = BiasFieldSettings()
    registration: RegistrationSettings = RegistrationSettings()
    intensity: IntensitySettings = IntensitySettings()
    quality: QualitySettings = QualitySettings()

    @model_validator(mode="after")
    def _each_channel_once(self) -> Self:
        for setting, names in (("modalities", self.modalities), ("derived_maps", self.derived_maps)):
            if len(set(names)) < len(names):
                raise ValueError(f"{setting} names one twice: {', '.join(names)}")
        return self
