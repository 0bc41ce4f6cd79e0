"""A way to the template that the user already has: from ANTs, fMRIPrep or another tool that writes ITK transforms."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...data_manifests.errors import UserError, private
from ...data_manifests.open_file import open_file
from .register import jacobian_range
from .resampling import LPS, itk_displacements, itk_geometry
from .template import Template
from .template_transform import TemplateTransform, in_steps

_NO_WARP_MM = 0.01
_INVERSE_ERROR_MM = 0.01


def read_transform(path: Path, template: Template) -> TemplateTransform:
    """Read an ITK transform that brings a T1w to the template.

    Parameters
    ----------
    path : Path
        What ``antsApplyTransforms -t`` takes to resample the T1w on the template, and BIDS calls
        ``from-T1w_to-MNI..._mode-image_xfm``: it takes points of the template to points of the T1w. Affine (.mat,
        .tfm, .txt) or a composite with warps (.h5).
    template : Template
        The grid that the warp is kept on.

    Returns
    -------
    TemplateTransform
        Its affine is the best fit inside the template's brain, its warp what that leaves; the inverse of the warp is
        found by iteration.

    Raises
    ------
    UserError
        The file is missing, no transform, or not one of 3-D space to itself.
    """
    transform = open_transform(path)
    origin, spacing, direction = itk_geometry(template.grid)
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        [int(n) for n in template.grid.size_vox],
        origin.tolist(),
        spacing.tolist(),
        direction.ravel().tolist(),
    )
    moves = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) @ LPS
    points = np.moveaxis(np.indices(template.grid.size_vox), 0, -1) @ template.affine[:3, :3].T + template.affine[:3, 3]
    affine = _best_affine(points, points + moves, template.brain_mask.voxels)
    back = np.linalg.inv(affine)
    warp = (points + moves) @ back[:3, :3].T + back[:3, 3] - points
    if np.abs(warp[template.brain_mask.voxels]).max() < _NO_WARP_MM:
        return TemplateTransform.from_affine(affine)
    warp = in_steps(warp)
    return TemplateTransform(affine, warp, _inverted(warp, template), template.grid, jacobian_range(warp, template))


def open_transform(path: Path) -> sitk.Transform:
    """The transform that a file holds; a UserError where it is missing, no transform, or not 3-D."""
    with open_file(path, expected="an ITK transform (.h5, .mat, .tfm, .txt) in column template_transform"):
        pass  # there, and not a pointer: SimpleITK says neither
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{private(path.name)}: is not a transform that is understood, expected one of ITK (.h5, .mat, .tfm, .txt)."
            " Name what antsApplyTransforms would take, or leave column template_transform empty."
        ) from error
    if transform.GetDimension() != 3:
        raise UserError(f"{private(path.name)}: moves points of {transform.GetDimension()}-D space, expected 3-D.")
    return transform


def _best_affine(points: np.ndarray, moved: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(4, 4), by least squares over the voxels inside."""
    known = np.column_stack([points[inside], np.ones(int(inside.sum()))])
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(known, moved[inside], rcond=None)[0].T
    return affine


def _inverted(warp: np.ndarray, template: Template) -> np.ndarray:
    inverse = sitk.InvertDisplacementField(
        itk_displacements(warp, template.grid),
        maximumNumberOfIterations=50,
        maxErrorToleranceThreshold=_INVERSE_ERROR_MM,
        meanErrorToleranceThreshold=_INVERSE_ERROR_MM / 10,
        enforceBoundaryCondition=True,
    )
    return in_steps(sitk.GetArrayFromImage(inverse).transpose(2, 1, 0, 3) @ LPS)
