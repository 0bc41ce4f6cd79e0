"""Resampling of template-space volumes (atlas, region, map of another tool) to the grid of a subject's own image.

Other tools resample with the transforms that `write_transforms` writes.
"""

import os
from pathlib import Path

import SimpleITK as sitk

from ...data_manifests.cohort.output_paths import TEMPLATE_SPACE, OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord, parts_of_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Grid, Volume, read_grid, read_labels, read_map
from ...data_manifests.terms import BIDS_SUFFIX, Modality
from ...preprocessing.registration.coregistration import Alignment
from ...preprocessing.registration.template_transform import TemplateTransform
from ..workflow.folders import make_folder
from .result_file import require_outside_run


def bring_to_native(
    out: OutputFolder, key: str, path: Path, *, image: Modality = "t1w", like: Path | None = None, labels: bool = False
) -> Volume:
    """Resample a template-space volume to a native grid, in one interpolation.

    Parameters
    ----------
    out : OutputFolder
        Output folder of a run that prepared the subject.
    key : str
        ``sub-01`` or ``sub-01_ses-2``; the prefix is optional.
    path : Path
        Volume in template space (MNI152), on any grid.
    image : {"t1w", "flair"}
        Image whose space the result is in.
    like : Path, optional
        Image of that space, whose grid and form codes the result gets; required unless `image` is the T1w.
    labels : bool
        Nearest-neighbour instead of linear interpolation: labels keep their data type and exact value. A volume with a
        single label is a mask, whose parts keep their volume.

    Raises
    ------
    UserError
        The subject or image was not prepared, a file cannot be read, `like` is missing, labels are not whole numbers,
        or no nonzero voxel lies in the image's field of view.
    """
    subject = _subject_of_key(key)
    transform, alignment = _transforms(out, subject, image)
    if like is None and image != "t1w":
        raise UserError(f"--image {image}: no grid is given, expected an image of that space. Give it with --like.")
    grid = read_grid(like or out.native_brain_mask(subject))
    volume = read_labels(path) if labels else read_map(path)
    if not volume.voxels.any():
        raise UserError(f"{private(path.name)}: is 0 everywhere, expected nonzero voxels. Check the file.")
    native = _resampled(volume, transform, grid, alignment, labels=labels)
    if not native.voxels.any():
        raise UserError(
            f"{private(path.name)}: no nonzero voxel lies in the field of view of {subject.key}'s {BIDS_SUFFIX[image]} "
            f"({grid}), expected a volume in template space (MNI152) that fills a voxel of it. Check its affine."
        )
    return native


def write_transforms(out: OutputFolder, key: str, folder: Path, *, image: Modality = "t1w") -> list[Path]:
    """Write the transforms between a subject's image and the template as composite ITK files, with BIDS names.

    Parameters
    ----------
    out, key, image
        As in `bring_to_native`.
    folder : Path
        Made if it does not exist.

    Returns
    -------
    list of Path
        ``..._from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5`` and the inverse.

    Raises
    ------
    UserError
        The subject or image was not prepared, or one of the files exists or would lie among the run's own files.
    """
    subject = _subject_of_key(key)
    transform, alignment = _transforms(out, subject, image)
    ends = (BIDS_SUFFIX[image], TEMPLATE_SPACE)
    to_template, to_native = (
        folder / f"{subject.key}_from-{source}_to-{target}_mode-image_xfm.h5" for source, target in (ends, ends[::-1])
    )
    for path in (to_template, to_native):
        require_outside_run(path, out.root)
        if os.path.lexists(path):
            raise UserError(f"{private(path)}: exists, expected a new file. Choose another folder, or move it away.")
    make_folder(folder)
    transform.write_itk(to_template, to_native, from_t1w=alignment)
    return [to_template, to_native]


def _transforms(
    out: OutputFolder, subject: SubjectRecord, image: Modality
) -> tuple[TemplateTransform, sitk.Transform | None]:
    """Load the transform of a prepared subject and, for another image than the T1w, its alignment with the T1w."""
    if not (out.transform_folder(subject) / "transform.json").is_file():
        there = _prepared(out)
        expected = f"a subject such as {there[0]}" if there else "a run with prepared subjects"
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds no prepared {subject.key}, expected {expected}. "
            "Check the id."
        )
    transform = TemplateTransform.load(out.transform_folder(subject))
    if image == "t1w":
        return transform, None
    if not out.alignment(subject, image).is_file():
        raise UserError(
            f"{subject.key}: its {BIDS_SUFFIX[image]} was not prepared, expected its alignment to the T1w. Add "
            f"{image} to preprocessing.modalities and run prepare again."
        )
    return transform, Alignment.load(out.alignment(subject, image)).transform


def _resampled(
    volume: Volume, transform: TemplateTransform, grid: Grid, alignment: sitk.Transform | None, *, labels: bool
) -> Volume:
    if not labels:
        return transform.to_native(volume, grid, interpolation="linear", from_t1w=alignment)
    shown = volume.voxels != 0
    label = volume.voxels[shown][:1]
    if (volume.voxels[shown] != label).any():
        return transform.to_native(volume, grid, interpolation="nearest", from_t1w=alignment)
    mask = transform.to_native(volume.with_voxels(shown), grid, interpolation="volume", from_t1w=alignment)
    return mask.with_voxels(mask.voxels * label)


def _prepared(out: OutputFolder) -> list[str]:
    """Return the keys of the subjects that have a transform."""
    root = out.root / "prepared"
    found = root.glob("sub-*/**/transforms/transform.json")
    return sorted("_".join(file.parent.parent.relative_to(root).parts) for file in found)


def _subject_of_key(key: str) -> SubjectRecord:
    subject, session = parts_of_key(key)
    return SubjectRecord(subject, "control", {}, session_id=session)
