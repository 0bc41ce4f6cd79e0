"""Settings of the `preprocessing` section of a configuration."""

import shlex
from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ..data_manifests.settings import OldValues, Section
from ..data_manifests.terms import Modality

REGISTRATION_SEED = 0
"""Seed of every registration. It only chooses the voxels that the metric samples, so it is no setting: a run with
another seed has the same prepared images, and differs in what is random by design (the split, the training)."""


class BrainExtractionSettings(Section):
    """Settings of the brain extraction."""

    method: Literal["auto", "deepbet", "hdbet", "command", "template", "given", "none"] = "auto"
    """`auto`: the manifest's mask if there is one; no extraction if the scan is already skull-stripped; otherwise
    deepbet, then deepbet on an upright copy if the head is tilted or the mask is not plausible, then template
    registration if that mask is not plausible either. For scans on which deepbet fails, such as those with much
    pathology: `hdbet`, [HD-BET](https://github.com/MIC-DKFZ/HD-BET), an optional extra (`pip install
    '.[hdbet]'` in your clone of voxout, one minute more per scan), and `command`, a program of the site. `none`: every
    scan is assumed to be skull-stripped."""
    command: str = ""
    """Command line for method `command`, with {image} and {mask} for the NIfTI files to read and to write, as in
    `mri_synthstrip -i {image} -m {mask}`. Double the braces that the program itself needs. Weights are read from where
    the command says; nothing is downloaded."""
    smallest_ml: Annotated[float, Field(gt=0)] = 800.0
    """Smallest volume of a plausible brain mask."""
    largest_ml: Annotated[float, Field(gt=0)] = 2200.0
    """Largest volume of a plausible brain mask."""

    removed: ClassVar = {"smallest_overlap": 0.89}

    @model_validator(mode="after")
    def _command_with_both_files(self) -> Self:
        if self.method != "command":
            return self
        found = f'method is command and command is "{self.command}"'
        try:
            named = {name for _, name, _, _ in Formatter().parse(self.command) if name is not None}
        except ValueError as error:
            raise ValueError(
                f"{found}, which has an unbalanced brace; double the braces that the program needs"
            ) from error
        if not {"image", "mask"} <= named:
            raise ValueError(
                f"{found}, expected a command line with {{image}} and {{mask}}, for example mri_synthstrip "
                "-i {image} -m {mask}"
            )
        if others := sorted(named - {"image", "mask"}):
            raise ValueError(
                f"{found}, which contains {{{others[0]}}}, expected only {{image}} and {{mask}} in braces; double "
                "the braces that the program needs"
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"{found}, which cannot be split into words ({error}); close the quotes") from error
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest_ml >= self.largest_ml:
            raise ValueError(f"smallest_ml ({self.smallest_ml:g}) must be less than largest_ml ({self.largest_ml:g})")
        return self


class BiasFieldSettings(Section):
    """Settings of the bias field correction."""

    enabled: bool = True
    """Whether the bias field is corrected, by N4."""
    working_spacing_mm: Annotated[float, Field(gt=0, le=20)] = 4.0
    """Spacing of the grid on which the smooth field is estimated; it is applied at full resolution."""

    removed: ClassVar = {"spline_mm": 200.0, "levels": 3, "tolerance": 1e-3}


class RegistrationSettings(Section):
    """Settings of the registration to the template."""

    transform: Literal["syn", "affine", "none"] = "syn"
    """`syn`: affine, then a diffeomorphism; `affine`; `none`: the images are already in the space of the template,
    MNI152NLin2009aSym."""
    working_spacing_mm: Annotated[float, Field(ge=1, le=5)] = 2.0
    """Spacing of the grid on which the registration runs; 1 mm does not improve the overlap."""
    stiffness: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Variance, in squared voxels of each level, of the Gaussian that smooths the whole warp after every step of SyN
    (ANTs' total_sigma). 0 leaves the warp free. With higher values a lesion keeps more of its volume, and tissues
    overlap less (measured in docs/preprocessing.md)."""
    exclude_lesions: bool = False
    """Exclude the manifest's lesion mask, slightly dilated, from the registration metric, so that lesions are not
    warped away. Off by default: the masks of an evaluation are the truth and must not leak into the maps that are
    evaluated against them. Enable it for lesions known beforehand, such as resection cavities."""
    smallest_overlap: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Smallest Dice of the warped brain with the template's brain; below it a subject fails."""
    smallest_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.35
    """Smallest correlation of the warped T1w with the template's T1w inside the template's brain; below it a subject
    fails. A well-registered brain with large ventricles may have 0.46, a brain rotated by 20 degrees less than 0.35."""


IntensityMethod = Literal["percentiles", "z_score", "white_matter", "nyul"]


DerivedMapName = Literal["junction", "extension", "detail", "fineness"]


class IntensitySettings(Section):
    """Settings of intensity scaling and standardisation."""

    method: Annotated[IntensityMethod, BeforeValidator(OldValues({"landmarks": "nyul"}))] = "nyul"
    """Standardisation (docs/intensity.md). `nyul`: match the deciles of the training controls (Nyul histogram
    standardisation); `z_score`: median and median absolute deviation; `white_matter`: the white-matter peak;
    `percentiles`: only the scaling of the prepared images, in which the percentiles 0.5 and 99.5 are 0 and 0.8. A
    change does not repeat the preparation."""

    removed: ClassVar = {"low_percent": 0.5, "high_percent": 99.5}


class QualitySettings(Section):
    """Limits outside of which a subject gets a warning; further ones are constants (docs/quality.md)."""

    smallest_brain_ml: Annotated[float, Field(ge=0)] = 1000.0
    """Smallest usual brain volume."""
    largest_brain_ml: Annotated[float, Field(gt=0)] = 1900.0
    """Largest usual brain volume."""

    removed: ClassVar = {
        "smallest_overlap": 0.97,
        "smallest_coverage": 0.98,
        "smallest_similarity": 0.55,
        "smallest_white_matter_overlap": 0.6,
        "smallest_jacobian": 0.55,
        "largest_jacobian": 2.5,
        "largest_noise": 0.08,
        "largest_dark_share": 0.03,
    }

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest_brain_ml >= self.largest_brain_ml:
            raise ValueError(
                f"smallest_brain_ml ({self.smallest_brain_ml:g}) must be less than largest_brain_ml "
                f"({self.largest_brain_ml:g})"
            )
        return self


class PreprocessingSettings(Section):
    """Settings of the preparation of a subject."""

    spacing_mm: Annotated[float, Field(ge=0.5, le=5)] = 2.0
    """Edge length of the template grid's voxels."""
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("t1w",)
    """Modalities, in the order of the channels, as in `[t1w, flair]`: column `flair` is used only if it is listed here.
    The T1w is always used for brain extraction and registration."""
    derived_maps: tuple[DerivedMapName, ...] = ("junction", "extension", "detail", "fineness")
    """Maps computed from every modality, appended as channels (docs/derived-maps.md). A change does not repeat the
    preparation."""
    brain_extraction: BrainExtractionSettings = BrainExtractionSettings()
    bias_field: BiasFieldSettings = BiasFieldSettings()
    registration: RegistrationSettings = RegistrationSettings()
    intensity: IntensitySettings = IntensitySettings()
    quality: QualitySettings = QualitySettings()

    @model_validator(mode="after")
    def _each_channel_once(self) -> Self:
        for setting, names in (("modalities", self.modalities), ("derived_maps", self.derived_maps)):
            if len(set(names)) < len(names):
                raise ValueError(f"{setting} has a duplicate: {', '.join(names)}")
        return self
