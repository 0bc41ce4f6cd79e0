"""Preparation of one subject: from the scanner's files to normalised images on the template grid.

Steps: reorientation to RAS, brain extraction, bias field correction, registration of the T1w to the template, alignment
of the other images with the T1w. Each image is then interpolated once, from its own grid to the template grid, and its
intensities are scaled to [0, 1].
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data_manifests.cohort.check import EMPTY_LESION_MASK, missing_images, on_another_grid
from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import SubjectRecord
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.images.volume import Grid, Volume, read_grid, read_mask, read_volume, write_volume
from ..data_manifests.terms import BIDS_SUFFIX, Modality
from .brain_extraction.extract import BrainExtraction, extract_brain
from .intensity.bias_field import correct_bias_field
from .intensity.percentile_scaling import normalise
from .quality.metrics import white_to_grey
from .quality.picture import quality_picture
from .quality.verdict import Quality, measure_quality
from .registration.coregistration import UNMOVED, Alignment, align_to_t1w, one_thread
from .registration.register import register_to_template
from .registration.resampling import canonical, reoriented_like, resample
from .registration.template import load_template
from .registration.template_transform import TemplateTransform
from .registration.user_transform import read_transform
from .settings import REGISTRATION_SEED, PreprocessingSettings
from .subject_inputs import (
    contrast_agent_warnings,
    needed_images,
    refusals,
    require_intensities,
    template_space_warnings,
)

_LARGE_SHIFT_MM = 20.0
_LEAST_INFORMATION = 0.12


def prepare_subject(
    subject: SubjectRecord, settings: PreprocessingSettings, out: OutputFolder, *, seed: int = REGISTRATION_SEED
) -> Quality:
    """Prepare one subject and write its files to the paths of `OutputFolder`.

    Parameters
    ----------
    subject : SubjectRecord
    settings : PreprocessingSettings
    out : OutputFolder
    seed : int
        The same seed, settings and files give bit-identical results (see `registration.register` on threads).

    Returns
    -------
    Quality
        The quality record, as it was written.

    Raises
    ------
    SubjectError
        A file cannot be used, a modality is missing, a mask lies on another grid, no plausible brain was found, or
        the registration failed. The quality record and picture are written if preparation got that far.
    """
    try:
        # With several threads SimpleITK's sums are not bit-identical, and a registration magnifies the difference.
        with one_thread():
            quality = _prepare(subject, settings, out, seed)
    except UserError as error:
        raise SubjectError([f"{subject.key}: {problem}" for problem in error.problems]) from error
    if quality.verdict == "fail":
        raise SubjectError(f"{subject.key}: {'; '.join(quality.reasons)}.")
    return quality


def _prepare(subject: SubjectRecord, settings: PreprocessingSettings, out: OutputFolder, seed: int) -> Quality:
    t1w, native_grid, given, lesion = _read_t1w_and_masks(subject, settings)
    brain = extract_brain(t1w, settings.brain_extraction, given=given, seed=seed)
    t1w = correct_bias_field(t1w, brain.mask, settings.bias_field)
    images, alignments = _read_aligned(subject, settings, t1w, brain.mask, out, seed)
    lesion_on_t1w = lesion
    if lesion is not None and subject.mask_of != "t1w":
        lesion_on_t1w = resample(lesion, native_grid, alignments[subject.mask_of].transform, "linear")
    transform = _transform_to_template(subject, settings, t1w, brain.mask, lesion_on_t1w, seed)
    transform.save(out.transform_folder(subject))

    template = load_template(settings.spacing_mm)
    brain_mask = transform.to_template(brain.mask, template.grid, interpolation="linear")
    own = subject.images["t1w"]
    warnings = contrast_agent_warnings(own)
    if settings.registration.transform != "none":
        warnings += template_space_warnings(own, native_grid)
    if lesion and lesion_on_t1w:
        from_t1w = alignments[subject.mask_of].transform
        warped_lesion = transform.to_template(lesion, template.grid, interpolation="volume", from_t1w=from_t1w)
        warnings += _lesion_warnings(lesion, warped_lesion, brain_mask)
        write_volume(out.prepared_lesion_mask(subject), warped_lesion)
        write_volume(out.native_lesion_mask(subject), lesion_on_t1w)
    prepared, in_view, found = _images_on_template(images, alignments, brain, transform, brain_mask, settings)
    warnings += found

    working_template = load_template(settings.registration.working_spacing_mm)
    quality = measure_quality(t1w, brain, transform, working_template, settings, warnings=warnings)
    for modality, image in prepared.items():
        write_volume(out.prepared_image(subject, modality), image)
    # Brain outside the field of view of one of the images is excluded: the value 0 there is not an intensity.
    write_volume(out.prepared_brain_mask(subject), in_view)
    write_volume(out.native_brain_mask(subject), reoriented_like(brain.mask, native_grid))
    title = f"{subject.key}: {quality.verdict}"
    quality_picture(out.quality_picture(subject), t1w, brain.mask, prepared, template, title=title)
    quality.save(out.quality(subject))
    return quality


def _read_t1w_and_masks(
    subject: SubjectRecord, settings: PreprocessingSettings
) -> tuple[Volume, Grid, Volume | None, Volume | None]:
    """Read and check the T1w and the masks of the manifest.

    Returns
    -------
    t1w : Volume
        Reoriented to RAS, without negative values.
    native_grid : Grid
        Of the T1w as stored.
    brain_mask : Volume, bool, or None
        Reoriented to RAS.
    lesion_mask : Volume, bool, or None
        As stored, on the grid of the image that it was drawn on.
    """
    if missing := missing_images(subject, settings.modalities):
        raise UserError(missing)
    stored = read_volume(subject.images["t1w"])
    brain_mask = _read_mask_like(subject.brain_mask, stored.grid, "brain mask", "t1w")
    lesion_grid = stored.grid if subject.mask_of == "t1w" else read_grid(subject.images[subject.mask_of])
    lesion_mask = _read_mask_like(subject.lesion_mask, lesion_grid, "lesion mask", subject.mask_of)
    problems = refusals(subject, settings, {"t1w": stored}, brain_mask)
    if lesion_mask is not None and subject.group == "patient" and not lesion_mask.voxels.any():
        problems.append(EMPTY_LESION_MASK)
    if problems:
        raise UserError(problems)
    return _non_negative(stored), stored.grid, brain_mask and canonical(brain_mask), lesion_mask


def _read_aligned(
    subject: SubjectRecord,
    settings: PreprocessingSettings,
    t1w: Volume,
    brain_mask: Volume,
    out: OutputFolder,
    seed: int,
) -> tuple[dict[Modality, Volume], dict[Modality, Alignment]]:
    """Read the other images, and align each with the T1w; the T1w itself comes first."""
    images: dict[Modality, Volume] = {"t1w": t1w}
    alignments: dict[Modality, Alignment] = {"t1w": UNMOVED}
    for modality in needed_images(subject, settings)[1:]:
        scan = read_volume(subject.images[modality])
        require_intensities(scan, BIDS_SUFFIX[modality])
        images[modality] = _non_negative(scan)
        alignments[modality] = align_to_t1w(images[modality], t1w, brain_mask, seed=seed)
        alignments[modality].save(out.alignment(subject, modality))
    return images, alignments


def _transform_to_template(
    subject: SubjectRecord,
    settings: PreprocessingSettings,
    t1w: Volume,
    brain_mask: Volume,
    lesion: Volume | None,
    seed: int,
) -> TemplateTransform:
    """Return the transform of the manifest or, without one, the registration of the T1w."""
    template = load_template(settings.registration.working_spacing_mm)
    if subject.template_transform is not None:
        return read_transform(subject.template_transform, template)
    excluded = canonical(lesion) if lesion and settings.registration.exclude_lesions else None
    return register_to_template(t1w, brain_mask, template, settings.registration, seed=seed, lesion_mask=excluded)


def _images_on_template(
    images: Mapping[Modality, Volume],
    alignments: Mapping[Modality, Alignment],
    brain: BrainExtraction,
    transform: TemplateTransform,
    brain_mask: Volume,
    settings: PreprocessingSettings,
) -> tuple[dict[Modality, Volume], Volume, list[str]]:
    """Interpolate the images of the settings on the grid of `brain_mask`, and scale their intensities.

    Returns
    -------
    prepared : dict from modality to Volume
    in_view : Volume, bool
        The brain inside the field of view of all images.
    warnings : list of str
    """
    template = load_template(settings.spacing_mm)
    prepared: dict[Modality, Volume] = {}
    contrast: dict[Modality, float] = {}
    in_view, warnings = brain_mask.voxels, []
    for modality in settings.modalities:
        image, inside, alignment = images[modality], brain.mask, alignments[modality]
        if modality != "t1w":
            inside = resample(brain.mask, image.grid, alignment.transform.GetInverse(), "linear")
            warnings += _alignment_warnings(modality, alignment, inside, brain)
            image = correct_bias_field(image, inside, settings.bias_field)
        warped, field_of_view = transform.scan_to_template(image, inside, template.grid, from_t1w=alignment.transform)
        contrast[modality] = white_to_grey(warped.voxels, template)
        covered = brain_mask.with_voxels(brain_mask.voxels & field_of_view.voxels)
        prepared[modality] = normalise(warped, covered)
        in_view = in_view & field_of_view.voxels
    return prepared, brain_mask.with_voxels(in_view), warnings + _contrast_warnings(contrast)


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
