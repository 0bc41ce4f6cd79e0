"""Reading and writing of images with their geometry. No other module reads or writes NIfTI.

Arrays have nibabel's axis order (X, Y, Z); an affine maps voxel indices to RAS+ millimetres. Images are read with
nibabel and not with ITK, which silently fills the missing end of a truncated file with zeros and replaces NaN by 0.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHError, MGHImage
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, SpatialImage
from nibabel.wrapstruct import WrapStructError

from ..atomic_write import atomic_write
from ..errors import UserError, private
from ..open_file import open_file
from .geometry import checked_grid
from .grid import SAME_WITHIN_MM, Grid, max_corner_distance_mm
from .metatensor import as_metatensor, from_metatensor
from .nifti_header import ScanNifti1, ScanNifti2, check_header, check_size

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

# Errors of nibabel, gzip and the file system for a damaged file. Any other error is a bug.
_READ_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    MGHError,
    WrapStructError,
)
_MAX_HIGHLY_COMPRESSED = 1 << 29
"""Largest size of the voxels, in bytes, for which gzip's highest compression ratio (empty images) is accepted."""
_MAX_TRAILING = 1 << 26
"""Largest number of bytes that are decompressed after the last voxel to reach the checksum."""


@dataclass(frozen=True, eq=False)
class Volume:
    """3-D array and its grid.

    Attributes
    ----------
    voxels : ndarray, (X, Y, Z)
    grid : Grid
    """

    voxels: np.ndarray
    grid: Grid

    def __post_init__(self):
        if self.voxels.shape != self.grid.size_vox:
            raise ValueError(f"voxels {self.voxels.shape} do not fit the grid {self.grid.size_vox}")

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS+ millimetres, (4, 4)."""
        return self.grid.affine

    def with_voxels(self, voxels: np.ndarray) -> "Volume":
        """Return a volume with the same grid and other voxels."""
        return Volume(voxels, self.grid)

    def to_metatensor(self) -> "MetaTensor":
        """Return a copy as a MONAI tensor, (1, X, Y, Z), with the same data type and affine."""
        return as_metatensor(self.voxels[None], self.grid)

    @classmethod
    def from_metatensor(cls, image: "MetaTensor") -> "Volume":
        """Return a copy of a MONAI tensor.

        Parameters
        ----------
        image : MetaTensor, (1, X, Y, Z)
            On any device. An affine in LPS millimetres, if its ``meta["space"]`` says so, is converted to RAS+.

        Raises
        ------
        UserError
            The tensor has no metadata, transforms that are still pending, another shape, values that are no real
            numbers, or an affine that is not finite.
        """
        return cls(*from_metatensor(image))


def read_grid(path: Path) -> Grid:
    """Read and check the geometry in a file's header.

    Raises
    ------
    UserError
        Missing or unreadable file; not one 3-D volume; invalid form codes; qform and sform with different axes; a
        singular or sheared affine; spacing outside 0.1-20 mm.
    """
    with _opened(path) as (image, _):
        return checked_grid(image, path)


def read_volume(path: Path) -> Volume:
    """Read a scan as float32 with its scale slope applied, and check its values.

    Raises
    ------
    UserError
        As `read_grid`; also for a truncated or damaged file, a colour image, values that are not finite and a constant
        image.
    """
    with _opened(path) as (image, stream):
        grid = checked_grid(image, path)
        with np.errstate(over="ignore"):
            voxels = _values(image, stream, path).astype(np.float32, copy=False)
    finite = np.isfinite(voxels)
    if not finite.all():
        raise _refused(
            path,
            f"{np.count_nonzero(~finite)} of {finite.size} voxels are NaN or infinite, expected "
            "finite intensities. Set those outside the head to 0, or convert the scan again from its source.",
        )
    if voxels.min() == voxels.max():
        raise _refused(path, f"every voxel is {voxels.flat[0]:g}, expected a scan. Convert it again from its source.")
    return Volume(voxels, grid)


def read_map(path: Path) -> Volume:
    """Read a score map as float32 with its scale slope applied. The values are not checked.

    Raises
    ------
    UserError
        As `read_grid`; also for a truncated or damaged file and a colour image.
    """
    with _opened(path) as (image, stream):
        grid = checked_grid(image, path)
        with np.errstate(over="ignore"):
            return Volume(_values(image, stream, path).astype(np.float32, copy=False), grid)


def read_labels(path: Path) -> Volume:
    """Read labels in their stored data type, because float32 cannot represent all region numbers.

    Raises
    ------
    UserError
        As `read_grid`; also for a truncated or damaged file, a colour image and values that are not whole numbers.
    """
    with _opened(path) as (image, stream):
        grid = checked_grid(image, path)
        voxels = _values(image, stream, path)
    if not np.isfinite(voxels).all():
        raise _refused(path, "contains NaN or infinite labels, expected whole numbers. Set them to 0.")
    broken = voxels[voxels % 1 != 0]
    if broken.size:
        raise _refused(
            path,
            f"contains the value {broken[0]:g}, expected whole numbers as labels. Check that it is an atlas and not a "
            "map.",
        )
    return Volume(voxels, grid)


def read_description(path: Path) -> str:
    """Return the description field of a NIfTI header; "" for other images."""
    with _opened(path) as (image, _):
        if not isinstance(image.header, Nifti1Header):
            return ""
        return image.header["descrip"].tobytes().rstrip(b"\0").decode("ascii", "replace")


def read_mask(path: Path) -> Volume:
    """Read a mask as bool.

    Raises
    ------
    UserError
        As `read_grid`; also for a damaged file and an image with more than one value other than 0. An empty mask is
        no error here.
    """
    with _opened(path) as (image, stream):
        grid = checked_grid(image, path)
        voxels = _values(image, stream, path)
    inside = voxels != 0
    labels = voxels[inside]
    if labels.size and not (np.isfinite(labels[0]) and (labels == labels[0]).all()):
        found = np.unique(voxels)
        listed = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
        raise _refused(path, f"found the values {listed}, expected a mask of 0 and 1. Threshold it first.")
    return Volume(inside, grid)


def write_volume(
    path: Path,
    volume: Volume,
    *,
    description: str = "",
    intent: str = "none",
    shown: tuple[float, float] | None = None,
) -> Path:
    """Write a NIfTI file atomically.

    The header is new and contains only the geometry, so no free text of the input is copied. Booleans are stored as
    uint8, float64 and float16 as float32, 64-bit integers in 32 bits if they fit.

    Parameters
    ----------
    path : Path
    volume : Volume
    description : str
        At most 80 characters.
    intent : str
        Name of a NIfTI intent, such as "z score" (see `nibabel.nifti1.intent_codes`).
    shown : tuple of float, (2,), optional
        Range of values that viewers show at first (`cal_min` and `cal_max`).
    """
    image = _fresh_image(volume, _stored_type(volume.voxels))
    image.header.set_intent(intent)
    if shown is not None:
        image.header["cal_min"], image.header["cal_max"] = shown
    return _write(path, image, description)


def write_labels(path: Path, labels: Volume, *, description: str = "") -> Path:
    """Write labels as returned by `read_labels` in their own data type; otherwise as `write_volume`."""
    return _write(path, _fresh_image(labels, labels.voxels.dtype), description)


def nifti_bytes(volume: Volume, *, slope: float = 1.0) -> bytes:
    """Return an uncompressed NIfTI file as bytes; `slope` is the scale slope of the stored values."""
    image = _fresh_image(volume, _stored_type(volume.voxels))
    image.header.set_slope_inter(slope, 0)
    return image.to_bytes()


def _write(path: Path, image: Nifti1Image, description: str) -> Path:
    image.header["descrip"] = description
    with atomic_write(path) as temporary:
        save(image, temporary)
    return path


def _fresh_image(volume: Volume, stored: np.dtype) -> Nifti1Image:
    grid = volume.grid
    voxels = volume.voxels.astype(stored, copy=False)
    image = Nifti1Image(voxels, grid.affine, dtype=stored)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine if grid.qform is None else grid.qform, code=grid.qform_code)
    image.set_sform(grid.affine, code=grid.sform_code)
    if max_corner_distance_mm(np.asarray(image.header.get_best_affine()), grid.affine, grid.size_vox) > SAME_WITHIN_MM:
        # The codes are from a file without an sform, but this affine can only be stored in an sform.
        image.set_sform(grid.affine, code=1)
    return image


def _stored_type(voxels: np.ndarray) -> np.dtype:
    stored = {"bool": "uint8", "float16": "float32", "float64": "float32", "int64": "int32", "uint64": "uint32"}
    kind = np.dtype(stored.get(voxels.dtype.name, voxels.dtype))
    if kind.kind in "iu" and voxels.dtype.itemsize == 8 and voxels.size:
        limits = np.iinfo(kind)
        if voxels.min() < limits.min or voxels.max() > limits.max:
            return voxels.dtype
    return kind


@contextmanager
def _opened(path: Path) -> Iterator[tuple[SpatialImage, BufferedIOBase]]:
    """Open an image and yield it with its open stream. The format is detected from the content, not the name."""
    with open_file(path, expected="an image file (.nii, .nii.gz or .mgz)") as raw:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        yield _image_in(stream, path), stream


def _image_in(stream: BufferedIOBase, path: Path) -> SpatialImage:
    try:
        block = stream.read(540)
    except _READ_FAILURES as error:
        raise _damaged(path) from error
    if not block:
        raise _refused(path, "is empty (0 bytes), expected a scan. Copy it again.")
    if block[344:347] == b"n+1" and len(block) >= 348:
        image_class = ScanNifti1
        check_header(Nifti1Header(block[:348], check=False), path, first_voxel=352)
    elif block[4:7] == b"n+2" and len(block) == 540:
        image_class = ScanNifti2
        check_header(Nifti2Header(block, check=False), path, first_voxel=540)
    elif block[:4] == b"\x00\x00\x00\x01" and path.name.lower().endswith((".mgz", ".mgh", ".mgh.gz")):
        image_class = MGHImage
        # Check the size first: nibabel begins with the geometry, which is stored after the voxels.
        check_size(np.frombuffer(block[4:20].ljust(16, b"\0"), ">i4").tolist(), path)
    else:
        kind = "a DICOM file" if block[128:132] == b"DICM" else "not in a supported image format"
        raise _refused(
            path, f"is {kind}, expected NIfTI (.nii, .nii.gz) or MGZ. Convert it, for instance with dcm2niix."
        )
    try:
        stream.seek(0)
        with LoggingOutputSuppressor():
            image = image_class.from_file_map({"image": FileHolder(path.name, stream)}, mmap=False)
    except _READ_FAILURES as error:
        raise _damaged(path) from error
    if isinstance(image, MGHImage):
        # nibabel sets the flag to 1 after replacing a geometry that is not valid.
        image.header["goodRASFlag"] = int.from_bytes(block[28:30], "big", signed=True)
    return image


def _refused(path: Path, sentence: str) -> UserError:
    return UserError(f"{private(path.name)}: {sentence}")


def _damaged(path: Path) -> UserError:
    return _refused(
        path,
        "is truncated or damaged, expected a complete file. Copy it again, or convert the scan again from its source.",
    )


def _values(image: SpatialImage, stream: BufferedIOBase, path: Path) -> np.ndarray:
    """Return the scaled values, (X, Y, Z). For gzip files, the checksum at the end is verified."""
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "c":
        found = "a colour image" if kind.fields is not None else "an image of complex numbers"
        raise _refused(path, f"is {found}, expected one intensity per voxel. Use the original scan.")
    # Gzip compresses by at most 1032:1. A header that needs more is wrong and would also allocate too much memory.
    needed = np.prod(image.shape, dtype=float) * kind.itemsize
    packed = (1032 if needed <= _MAX_HIGHLY_COMPRESSED else 100) if isinstance(stream, gzip.GzipFile) else 1
    if needed > path.stat().st_size * packed:
        raise _damaged(path)
    try:
        values = np.asanyarray(image.dataobj)
        # Read up to the checksum at the end, but not further than the limit.
        trailing = 0
        while isinstance(stream, gzip.GzipFile) and trailing <= _MAX_TRAILING and (block := stream.read(1 << 20)):
            trailing += len(block)
    except _READ_FAILURES as error:
        raise _damaged(path) from error
    if trailing > _MAX_TRAILING:
        raise _refused(
            path,
            f"has more than {_MAX_TRAILING >> 20} MB after its last voxel, expected the end of the file. "
            "Convert the scan again from its source.",
        )
    return values.reshape(values.shape[:3])
