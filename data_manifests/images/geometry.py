"""Where the voxels of an opened image lie, judged before a voxel is read."""

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError, SpatialImage

from ..errors import UserError, private
from .grid import Grid, apart_mm
from .nifti_header import SIZES_AGREE, judge_pixdim, judge_size, odd_unit


def judged_grid(image: SpatialImage, path: Path) -> Grid:
    """The grid of an opened image.

    Raises
    ------
    UserError
        Not one 3-D volume, or one too large; a singular or sheared affine; voxel sizes that are none of a scan; forms
        that contradict each other.
    """
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        found = "x".join(str(n) for n in image.shape)
        raise _refused(path, f"has the shape {found}, expected one 3-D volume. Name a single volume.")
    judge_size(shape, path)
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
            f"voxels of {' x '.join(f'{mm:.4g}' for mm in spacing_mm)} mm, expected 0.1 to 20 mm. "
            "Mend the voxel sizes in its header (metres for millimetres?).",
        )
    header = image.header
    if not isinstance(header, Nifti1Header):
        return Grid(shape, affine)
    judge_pixdim(header, affine, path)
    codes = int(header["qform_code"]), int(header["sform_code"])
    qform = _deviating_qform(header, affine, shape, path) if all(codes) else None
    return Grid(shape, affine, *codes, qform=qform, unit=odd_unit(header))


def _deviating_qform(
    header: Nifti1Header, affine: np.ndarray, shape: tuple[int, int, int], path: Path
) -> np.ndarray | None:
    """The qform where it is turned or shifted against the sform; an error where it is another geometry.

    A shift and a small turn are what aligning a scan to its commissures leaves behind. Flipped or swapped axes and
    other voxel sizes are a damaged header: one of the two forms confuses left and right.
    """
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise _refused(
            path, "its qform is not a rotation, expected one. Set its code to 0 if the sform is right."
        ) from error
    if apart_mm(qform, affine, shape) <= 0.5:
        return None
    by_qform, by_sform = Grid(shape, qform), Grid(shape, affine)
    cosines = (qform[:3, :3] * affine[:3, :3]).sum(axis=0) / (by_qform.spacing_mm * by_sform.spacing_mm)
    ratios = by_qform.spacing_mm / by_sform.spacing_mm
    if cosines.min() < np.cos(np.deg2rad(45)) or abs(np.log(ratios)).max() > np.log(SIZES_AGREE):
        raise _refused(
            path,
            f"qform ({by_qform}) and sform ({by_sform}) contradict each other, expected one geometry. "
            "Set the code of the wrong one to 0.",
        )
    return qform


def _refused(path: Path, sentence: str) -> UserError:
    return UserError(f"{private(path.name)}: {sentence}")
