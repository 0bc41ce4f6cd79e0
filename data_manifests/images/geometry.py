"""Grid of an opened image, checked before its voxels are read."""

from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError, SpatialImage

from ..errors import UserError, private
from .grid import Grid, max_corner_distance_mm
from .nifti_header import MAX_SIZE_RATIO, check_pixdim, check_size, non_mm_unit


def checked_grid(image: SpatialImage, path: Path) -> Grid:
    """Return the grid of an opened image.

    Raises
    ------
    UserError
        Not one 3-D volume, or too large; a singular or sheared affine; implausible voxel sizes; qform and sform that
        contradict each other.
    """
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        found = "x".join(str(n) for n in image.shape)
        raise _refused(path, f"has the shape {found}, expected one 3-D volume. Use a single volume.")
    check_size(shape, path)
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing_mm = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 0.999 * np.prod(spacing_mm):
        raise _refused(
            path,
            "its affine is singular or sheared, expected three perpendicular axes. "
            "Convert the scan again from its source.",
        )
    if spacing_mm.min() < 0.1 or spacing_mm.max() > 20:
        raise _refused(
            path,
            f"has voxels of {' x '.join(f'{mm:.4g}' for mm in spacing_mm)} mm, expected 0.1 to 20 mm. "
            "Correct the voxel sizes in its header (metres instead of millimetres?).",
        )
    header = image.header
    if isinstance(header, MGHHeader):
        code = int(header["goodRASFlag"] != 0)
        return Grid(shape, affine, code, code)
    if not isinstance(header, Nifti1Header):
        return Grid(shape, affine)
    check_pixdim(header, affine, path)
    codes = int(header["qform_code"]), int(header["sform_code"])
    qform = _deviating_qform(header, affine, shape, path) if all(codes) else None
    return Grid(shape, affine, *codes, qform=qform, unit=non_mm_unit(header))


def _deviating_qform(
    header: Nifti1Header, affine: np.ndarray, shape: tuple[int, int, int], path: Path
) -> np.ndarray | None:
    """Return the qform if it is rotated or shifted relative to the sform, or None if the two agree.

    A shift and a small rotation result from aligning a scan to its commissures. Flipped or swapped axes and other
    voxel sizes are an error: the header is damaged, and one of the two forms may confuse left and right.
    """
    try:
        qform = np.asarray_chkfinite(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise _refused(
            path, "its qform is not a rotation, expected a rotation. Set qform_code to 0 if the sform is correct."
        ) from error
    if max_corner_distance_mm(qform, affine, shape) <= 0.5:
        return None
    by_qform, by_sform = Grid(shape, qform), Grid(shape, affine)
    cosines = (qform[:3, :3] * affine[:3, :3]).sum(axis=0) / (by_qform.spacing_mm * by_sform.spacing_mm)
    ratios = by_qform.spacing_mm / by_sform.spacing_mm
    if cosines.min() < np.cos(np.deg2rad(45)) or abs(np.log(ratios)).max() > np.log(MAX_SIZE_RATIO):
        raise _refused(
            path,
            f"qform ({by_qform}) and sform ({by_sform}) contradict each other, expected one geometry. "
            "Set the code of the wrong form to 0.",
        )
    return qform


def _refused(path: Path, sentence: str) -> UserError:
    return UserError(f"{private(path.name)}: {sentence}")
