"""What a NIfTI header says of itself, judged before nibabel reads it.

nibabel mends many contradictions without a word, and thereby guesses: which form is meant, where the voxels start, how
they are scaled. A wrong guess is a wrong image, so the header is refused with what it holds.
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
"""Bytes: no header is followed by more free text than 64 MB."""
SIZES_AGREE = 1.05
"""The largest ratio of two voxel sizes that mean the same."""
_COLOURS = {128, 2304}
_COMPLEX = {32, 1792, 2048}
_NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}
_UNITS = {1: "metre", 3: "micron"}


class _NoFreeText(Nifti1Extensions):
    """Free text behind the header is no concern of ours: it may name a person, and claim more bytes than there are."""

    @classmethod
    def from_fileobj(cls, fileobj: BufferedIOBase, size: int, byteswap: bool) -> "_NoFreeText":
        return cls()


class _Header1(Nifti1Header):
    exts_klass = _NoFreeText


class _Header2(Nifti2Header):
    exts_klass = _NoFreeText


class ScanNifti1(Nifti1Image):
    """NIfTI-1 whose free text stays unread."""

    header_class = _Header1


class ScanNifti2(Nifti2Image):
    """NIfTI-2 whose free text stays unread."""

    header_class = _Header2


def judge_header(header: Nifti1Header, path: Path, *, first_voxel: int) -> None:
    """Refuse a raw header that contradicts itself.

    Parameters
    ----------
    header : Nifti1Header
        As it stands in the file, unchecked; NIfTI-2 headers are of this class too.
    path : Path
        For the sentences.
    first_voxel : int
        The first byte after header and extension flag.

    Raises
    ------
    UserError
        Form codes that do not exist, voxel sizes that are none, voxels that start inside the header, a scale that is
        no number, a type that holds no intensities.
    """
    name = private(path.name)
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not all(0 <= code <= 5 for code in codes):
        raise UserError(
            f"{name}: qform_code {codes[0]} and sform_code {codes[1]}, expected codes from 0 to 5: left and right "
            "cannot be told. Convert the scan again from its source."
        )
    sizes = _sizes_mm(header)
    if not (np.isfinite(sizes).all() and sizes.all()):
        raise UserError(
            f"{name}: voxels of {_by(sizes)} mm, expected 0.1 to 20 mm. Mend the voxel sizes in its header."
        )
    start = float(header["vox_offset"])
    if not first_voxel <= start <= FURTHEST_START:
        raise UserError(
            f"{name}: its voxels start at byte {start:.15g} (vox_offset), expected {first_voxel} or a little more: the "
            "header comes before them in the same file. Convert the scan again from its source."
        )
    _judge_type(int(header["datatype"]), name)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # "No scale" is written as a slope of 0, or as a pair of NaN.
    if slope != 0 and not (np.isnan(slope) and np.isnan(inter)) and not np.isfinite([slope, inter]).all():
        raise UserError(
            f"{name}: its header scales the values by {slope:g} and adds {inter:g} (scl_slope, scl_inter), expected "
            "two numbers, or 0 and 0 for values as they are stored. Correct the header, or convert the scan again from "
            "its source."
        )


def judge_size(shape: Sequence[int], path: Path) -> None:
    """Refuse more voxels than any scan has."""
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise UserError(
            f"{private(path.name)}: has the shape {'x'.join(map(str, shape))}, expected at most {MOST_VOXELS:,} voxels."
            " Resample the image, or convert it again if its header is wrong."
        )


def _judge_type(code: int, name: str) -> None:
    # Colours and complex numbers are refused with the values: their geometry is sound.
    if code in _NUMBERS | _COLOURS | _COMPLEX:
        return
    if code == 1:
        raise UserError(
            f"{name}: is stored with 1 bit a voxel (datatype 1), which hardly any tool reads alike, expected whole "
            "bytes. Convert it to 8-bit integers."
        )
    raise UserError(
        f"{name}: has the data type {code}, expected integers of 8 to 64 bits or floats of 32 or 64. Convert it to one "
        "of them."
    )


def judge_pixdim(header: Nifti1Header, affine: np.ndarray, path: Path) -> None:
    """Refuse an sform whose voxel sizes are not those of pixdim, where no qform stands between the two."""
    if int(header["qform_code"]) != 0 or int(header["sform_code"]) == 0:
        return
    by_sform, by_pixdim = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)), _sizes_mm(header)
    if np.abs(np.log(by_sform / by_pixdim)).max() > np.log(SIZES_AGREE):
        raise UserError(
            f"{private(path.name)}: voxels of {_by(by_sform)} mm by its sform and {_by(by_pixdim)} mm by its pixdim, "
            "expected one size. Correct the wrong one, or convert the scan again from its source."
        )


def odd_unit(header: Nifti1Header) -> str | None:
    """The unit of length that the header names, where it is not the millimetre."""
    return _UNITS.get(int(header["xyzt_units"]) & 7)


def _sizes_mm(header: Nifti1Header) -> np.ndarray:
    return np.abs(np.asarray(header["pixdim"][1:4], dtype=float))


def _by(sizes: np.ndarray) -> str:
    return " x ".join(f"{mm:.4g}" for mm in sizes)
