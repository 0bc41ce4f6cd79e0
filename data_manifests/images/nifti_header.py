"""Checks of a raw NIfTI header, before nibabel reads it.

nibabel silently repairs many inconsistent headers by guessing: which form applies, where the voxels start, how they
are scaled. A wrong guess gives a wrong image, so inconsistent headers are errors here.
"""

from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Extensions, Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image

from ..errors import UserError, private

MOST_VOXELS = 5 * 10**8
FURTHEST_START = 1 << 26
"""Largest accepted start of the voxels, in bytes: at most 64 MB of header extensions."""
MAX_SIZE_RATIO = 1.05
"""Largest ratio of two voxel sizes that count as equal."""
_COLOURS = {128, 2304}
_COMPLEX = {32, 1792, 2048}
_NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}
_UNITS = {1: "metre", 3: "micron"}


class _NoExtensions(Nifti1Extensions):
    """Header extensions, which are not read: they may contain names of participants and a wrong size."""

    @classmethod
    def from_fileobj(cls, fileobj: BufferedIOBase, size: int, byteswap: bool) -> "_NoExtensions":
        return cls()


class _Header1(Nifti1Header):
    exts_klass = _NoExtensions


class _Header2(Nifti2Header):
    exts_klass = _NoExtensions


class ScanNifti1(Nifti1Image):
    """NIfTI-1 image whose header extensions are not read."""

    header_class = _Header1


class ScanNifti2(Nifti2Image):
    """NIfTI-2 image whose header extensions are not read."""

    header_class = _Header2


def check_header(header: Nifti1Header, path: Path, *, first_voxel: int) -> None:
    """Check a raw header for inconsistent fields.

    Parameters
    ----------
    header : Nifti1Header
        Raw header of the file; NIfTI-2 headers are instances of this class too.
    path : Path
        For error messages.
    first_voxel : int
        First byte after the header and the extension flag.

    Raises
    ------
    UserError
        Invalid form codes, voxel sizes of 0 or not finite, voxels that start inside the header, a scale that is not
        finite, a data type without intensities.
    """
    name = private(path.name)
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not all(0 <= code <= 5 for code in codes):
        raise UserError(
            f"{name}: qform_code {codes[0]} and sform_code {codes[1]}, expected codes from 0 to 5: left and right "
            "are unknown. Convert the scan again from its source."
        )
    sizes = _sizes_mm(header)
    if not (np.isfinite(sizes).all() and sizes.all()):
        raise UserError(
            f"{name}: has voxels of {_by(sizes)} mm, expected 0.1 to 20 mm. Correct the voxel sizes in its header."
        )
    start = float(header["vox_offset"])
    if not first_voxel <= start <= FURTHEST_START:
        raise UserError(
            f"{name}: its voxels start at byte {start:.15g} (vox_offset), expected {first_voxel} or slightly more, "
            "after the header. Convert the scan again from its source."
        )
    _check_type(int(header["datatype"]), name)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # No scaling is stored as a slope of 0, or as slope and intercept NaN.
    if slope != 0 and not (np.isnan(slope) and np.isnan(inter)) and not np.isfinite([slope, inter]).all():
        raise UserError(
            f"{name}: its header scales the values by {slope:g} and adds {inter:g} (scl_slope, scl_inter), expected "
            "two finite numbers, or 0 and 0 for no scaling. Correct the header, or convert the scan again from its "
            "source."
        )


def check_size(shape: Sequence[int], path: Path) -> None:
    """Check that an image has at most `MOST_VOXELS` voxels."""
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise UserError(
            f"{private(path.name)}: has the shape {'x'.join(map(str, shape))}, expected at most {MOST_VOXELS:,} voxels."
            " Resample the image, or convert it again if its header is wrong."
        )


def _check_type(code: int, name: str) -> None:
    # Colour and complex images are rejected when the values are read; their geometry is valid.
    if code in _NUMBERS | _COLOURS | _COMPLEX:
        return
    if code == 1:
        raise UserError(
            f"{name}: is stored with 1 bit per voxel (datatype 1), which tools read differently, expected whole bytes. "
            "Convert it to 8-bit integers."
        )
    raise UserError(
        f"{name}: has the data type {code}, expected integers of 8 to 64 bits or floats of 32 or 64 bits. Convert it "
        "to one of these types."
    )


def check_pixdim(header: Nifti1Header, affine: np.ndarray, path: Path) -> None:
    """Check that the voxel sizes of the sform equal pixdim in a header that has no qform."""
    if int(header["qform_code"]) != 0 or int(header["sform_code"]) == 0:
        return
    by_sform, by_pixdim = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), _sizes_mm(header)
    if np.abs(np.log(by_sform / by_pixdim)).max() > np.log(MAX_SIZE_RATIO):
        raise UserError(
            f"{private(path.name)}: has voxels of {_by(by_sform)} mm by its sform and {_by(by_pixdim)} mm by its "
            "pixdim, expected equal sizes. Correct the wrong one, or convert the scan again from its source."
        )


def non_mm_unit(header: Nifti1Header) -> str | None:
    """Return the unit of length in the header if it is not the millimetre."""
    return _UNITS.get(int(header["xyzt_units"]) & 7)


def _sizes_mm(header: Nifti1Header) -> np.ndarray:
    return np.abs(np.asarray(header["pixdim"][1:4], dtype=float))


def _by(sizes: np.ndarray) -> str:
    return " x ".join(f"{mm:.4g}" for mm in sizes)
