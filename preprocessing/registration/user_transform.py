"""Template transforms provided by the user, from ANTs, fMRIPrep or other tools that write ITK transforms."""

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
    """Read an ITK transform from a T1w to the template.

    Parameters
    ----------
    path : Path
        The file to pass to ``antsApplyTransforms -t`` to resample the T1w to the template; in BIDS
        ``from-T1w_to-MNI..._mode-image_xfm``. It maps points of the template to points of the T1w. Affine (.mat, .tfm,
        .txt) or composite with warps (.h5).
    template : Template
        Template whose grid the warp is sampled on.

    Returns
    -------
    TemplateTransform
        The affine is the least-squares fit inside the template's brain and the warp the remainder. The inverse warp
        is computed iteratively.

    Raises
    ------
    UserError
        The file is missing, is not a transform, or is not a 3-D transform.
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
    """Open an ITK transform file; UserError if it is missing, not a transform, or not 3-D."""
    with open_file(path, expected="an ITK transform (.h5, .mat, .tfm, .txt) in column template_transform"):
        pass  # checks that it exists and is not a pointer file, which SimpleITK does not report
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{private(path.name)}: is not a readable transform, expected an ITK transform (.h5, .mat, .tfm, .txt). "
            "Name a file that antsApplyTransforms accepts, or leave column template_transform empty."
        ) from error
    if transform.GetDimension() != 3:
        raise UserError(
            f"{private(path.name)}: is a {transform.GetDimension()}-D transform, expected 3-D. Name another file, or "
            "leave column template_transform empty."
        )
    return transform


def _best_affine(points: np.ndarray, moved: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Least-squares affine (4, 4) over the voxels inside."""
    design = np.column_stack([points[inside], np.ones(int(inside.sum()))])
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(design, moved[inside], rcond=None)[0].T
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
