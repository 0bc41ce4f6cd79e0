"""Preparation of one subject: from the scanner's files to normalised images on the template grid.

Steps: reorientation to RAS, brain extraction, bias field correction, registration of the T1w to the template, alignment
of the other images with the T1w. Each image is then interpolated once, from its own grid to the template grid, and its
intensities are scaled to [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data_manifests.cohort.check import EMPTY_LESION_MASK, missing_images, on_another_grid
from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import SubjectRecord
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.images.volume import Grid, Volume, read_grid, read_mask, read_volume, write_volume
from ..data_manifests.terms import MODALITIES, Modality
from .brain_extraction.extract import BrainExtraction, extract_brain
from .intensity.bias_field import correct_bias_field
from .intensity.percentile_scaling import normalise
from .quality.metrics import white_to_grey
from .quality.picture import quality_picture
from .quality.verdict import Quality, measure_quality
from .registration.coregistration import UNMOVED, Alignment, align_to_t1w, one_thread
from .registration.register import register_to_template
from .registration.resampling import blurred_for, canonical, continued_outwards, reoriented_like, resample
from .registration.template import Template, load_template
from .registration.template_transform import TemplateTransform
from .registration.user_transform import read_transform
from .settings import PreprocessingSettings
from .subject_inputs import needed_images, refusals, require_intensities

if TYPE_CHECKING:
    import SimpleITK as sitk

_LARGE_SHIFT_MM = 20.0
_LEAST_INFORMATION = 0.12


@dataclass(frozen=True)
class PreparedSubject:
    """Files and quality record of a prepared subject.

    Attributes
    ----------
    key : str
    images : mapping from modality to path
        On the template grid, [0, 1] inside the brain, 0 outside; in the order of the settings' modalities.
    brain_mask : Path
        The subject's brain on the template grid.
    lesion_mask : Path or None
        On the template grid.
    native_brain_mask : Path
        On the grid of the T1w.
    transform_folder : Path
        Folder to pass to `TemplateTransform.load`.
    quality : Quality
    """

    key: str
    images: Mapping[Modality, Path]
    brain_mask: Path
    lesion_mask: Path | None
    native_brain_mask: Path
    transform_folder: Path
    quality: Quality

    @classmethod
    def load(cls, subject: SubjectRecord, out: OutputFolder) -> "PreparedSubject":
        """Load the record of a subject that `prepare_subject` has written.

        Raises
        ------
        SubjectError
            The subject has not been prepared, or its verdict is "fail".
        """
        try:
            quality = Quality.load(out.quality(subject))
        except UserError as error:
            raise SubjectError(f"{subject.key}: has not been prepared. Run prepare first.") from error
        if quality.verdict == "fail":
            raise SubjectError(f"{subject.key}: {'; '.join(quality.reasons)}.")
        images: dict[Modality, Path] = {
            m: out.prepared_image(subject, m) for m in MODALITIES if out.prepared_image(subject, m).exists()
        }
        lesion_mask = out.prepared_lesion_mask(subject)
        return cls(
            key=subject.key,
            images=images,
            brain_mask=out.prepared_brain_mask(subject),
            lesion_mask=lesion_mask if lesion_mask.exists() else None,
            native_brain_mask=out.native_brain_mask(subject),
            transform_folder=out.transform_folder(subject),
            quality=quality,
        )


def prepare_subject(
    subject: SubjectRecord, settings: PreprocessingSettings, out: OutputFolder, *, seed: int
) -> PreparedSubject:
    """Prepare one subject and write its files to the paths of `OutputFolder`.

    Parameters
    ----------
    subject : SubjectRecord
    settings : PreprocessingSettings
    out : OutputFolder
    seed : int
        The same seed, settings and files give bit-identical results (see `registration.register` on threads).

    Raises
    ------
    SubjectError
        A file cannot be used, a modality is missing, a mask lies on another grid, no plausible brain was found, or
        the registration failed. The quality record and picture are written if preparation got that far.
    """
    try:
        # With several threads SimpleITK's sums are not bit-identical, and a registration magnifies the difference.
        with one_thread():
            return _prepare(subject, settings, out, seed)
    except SubjectError:
        raise
    except UserError as error:
        raise SubjectError([f"{subject.key}: {problem}" for problem in error.problems]) from error


def _prepare(subject: SubjectRecord, settings: PreprocessingSettings, out: OutputFolder, seed: int) -> PreparedSubject:
    if missing := missing_images(subject, settings.modalities):
        raise UserError(missing)
    stored = read_volume(subject.images["t1w"])
    native_grid = stored.grid
    given = _read_mask_like(subject.brain_mask, native_grid, "brain mask", "t1w")
    lesion_grid = native_grid if subject.mask_of == "t1w" else read_grid(subject.images[subject.mask_of])
    lesion = _read_mask_like(subject.lesion_mask, lesion_grid, "lesion mask", subject.mask_of)
    problems = refusals(subject, settings, {"t1w": stored}, given)
    if lesion is not None and subject.group == "patient" and not lesion.voxels.any():
        problems.append(EMPTY_LESION_MASK)
    if problems:
        raise UserError(problems)
    t1w = _non_negative(stored)
    del stored

    brain = extract_brain(t1w, settings.brain_extraction, given=given and canonical(given), seed=seed)
    t1w = correct_bias_field(t1w, brain.mask, settings.bias_field)
    working_template = load_template(settings.registration.working_spacing_mm)
    images, alignments = {"t1w": t1w}, {"t1w": UNMOVED}
    for modality in needed_images(subject, settings)[1:]:
        scan = read_volume(subject.images[modality])
        require_intensities(scan, modality)
        images[modality] = _non_negative(scan)
        alignments[modality] = align_to_t1w(images[modality], t1w, brain.mask, seed=seed)
        alignments[modality].save(out.alignment(subject, modality))
    lesion_on_t1w = lesion
    if lesion is not None and subject.mask_of != "t1w":
        lesion_on_t1w = resample(lesion, native_grid, alignments[subject.mask_of].transform, "linear")
    if subject.template_transform is not None:
        transform = read_transform(subject.template_transform, working_template)
    else:
        excluded = canonical(lesion_on_t1w) if lesion_on_t1w and settings.registration.exclude_lesions else None
        transform = register_to_template(
            t1w, brain.mask, working_template, settings.registration, seed=seed, lesion_mask=excluded
        )
    transform.save(out.transform_folder(subject))

    template = load_template(settings.spacing_mm)
    brain_mask = transform.to_template(brain.mask, template.grid, interpolation="linear")
    warnings: list[str] = []
    if lesion and lesion_on_t1w:
        from_t1w = alignments[subject.mask_of].transform
        warped_lesion = transform.to_template(lesion, template.grid, interpolation="volume", from_t1w=from_t1w)
        warnings += _lesion_warnings(lesion, warped_lesion, brain_mask)
        write_volume(out.prepared_lesion_mask(subject), warped_lesion)
        write_volume(out.native_lesion_mask(subject), lesion_on_t1w)
    prepared: dict[Modality, Volume] = {}
    contrast: dict[Modality, float] = {}
    in_view = brain_mask.voxels
    for modality in settings.modalities:
        image, inside, alignment = images[modality], brain.mask, alignments[modality]
        if modality != "t1w":
            inside = resample(brain.mask, image.grid, alignment.transform.GetInverse(), "linear")
            warnings += _alignment_warnings(modality, alignment, inside, brain)
            image = correct_bias_field(image, inside, settings.bias_field)
        warped, field_of_view = _on_template(image, inside, transform, template, alignment.transform)
        contrast[modality] = white_to_grey(warped.voxels, template)
        prepared[modality] = normalise(warped, brain_mask.with_voxels(brain_mask.voxels & field_of_view.voxels))
        in_view = in_view & field_of_view.voxels

    warnings += _contrast_warnings(contrast)
    quality = measure_quality(t1w, brain, transform, working_template, settings, warnings=warnings)
    for modality, image in prepared.items():
        write_volume(out.prepared_image(subject, modality), image)
    # Brain outside the field of view of one of the images is excluded: the value 0 there is not an intensity.
    write_volume(out.prepared_brain_mask(subject), brain_mask.with_voxels(in_view))
    write_volume(out.native_brain_mask(subject), reoriented_like(brain.mask, native_grid))
    title = f"{subject.key}: {quality.verdict}"
    quality_picture(out.quality_picture(subject), t1w, brain.mask, prepared, template, title=title)
    quality.save(out.quality(subject))
    return PreparedSubject.load(subject, out)


def _non_negative(scan: Volume) -> Volume:
    """Reorient a scan to RAS and set negative values, left by an earlier interpolation, to 0."""
    return canonical(scan.with_voxels(np.maximum(scan.voxels, 0)))


def _read_mask_like(path: Path | None, grid: Grid, name: str, modality: Modality) -> Volume | None:
    if path is None:
        return None
    mask = read_mask(path)
    if problem := on_another_grid(mask, grid, name, modality):
        raise UserError(problem)
    return mask


def _on_template(
    image: Volume, inside: Volume, transform: TemplateTransform, template: Template, from_t1w: "sitk.Transform"
) -> tuple[Volume, Volume]:
    """Interpolate an image on the template grid; return it with its field of view there (bool)."""
    spacing = float(template.grid.spacing_mm.max())
    reach_mm = 3 * max(spacing, float(image.grid.spacing_mm.max()))
    smooth = blurred_for(continued_outwards(image, inside, reach_mm), spacing)
    warped = transform.to_template(smooth, template.grid, interpolation="bspline", from_t1w=from_t1w)
    everywhere = image.with_voxels(np.ones(image.grid.size_vox, bool))
    field_of_view = transform.to_template(everywhere, template.grid, interpolation="nearest", from_t1w=from_t1w)
    return warped, field_of_view


def _lesion_warnings(native: Volume, warped: Volume, brain_mask: Volume) -> list[str]:
    if native.voxels.any() and not warped.voxels.any():
        ml = native.voxels.sum() * native.grid.voxel_volume_mm3 / 1000
        return [f"its lesions of {ml:.2g} ml fall between the voxels of the template grid: none remains there"]
    if warped.voxels.any():
        outside = float((warped.voxels & ~brain_mask.voxels).sum() / warped.voxels.sum())
        if outside > 0.2:
            return [f"{outside:.0%} of its lesion voxels lie outside the brain mask"]
    return []


def _alignment_warnings(modality: Modality, alignment: Alignment, inside: Volume, brain: BrainExtraction) -> list[str]:
    found = []
    if alignment.information is not None and alignment.information < _LEAST_INFORMATION:
        found.append(
            f"the {modality.upper()} may not be aligned with the T1w: mutual information {alignment.information:.2f} "
            "nats, usually about 0.3; check the quality picture"
        )
    if alignment.shift_mm > _LARGE_SHIFT_MM:
        found.append(
            f"the header of the {modality.upper()} was {alignment.shift_mm:.0f} mm off the T1w; the image was realigned"
        )
    covered_mm3 = inside.voxels.sum() * inside.grid.voxel_volume_mm3
    share = covered_mm3 / (brain.mask.voxels.sum() * brain.mask.grid.voxel_volume_mm3)
    if share < 0.97:
        found.append(f"the {modality.upper()} covers only {share:.0%} of the brain")
    return found


def _contrast_warnings(white_to_grey: Mapping[Modality, float]) -> list[str]:
    """Detect swapped images by contrast: a FLAIR in place of the T1w registers nearly as well."""
    return [
        f"the T1w and the {modality.upper()} may be swapped: white matter over grey is {ratio:.2f} in the "
        f"{modality.upper()} and {white_to_grey['t1w']:.2f} in the T1w, expected more in the T1w; check the picture"
        for modality, ratio in white_to_grey.items()
        if ratio > white_to_grey.get("t1w", np.inf)
    ]
