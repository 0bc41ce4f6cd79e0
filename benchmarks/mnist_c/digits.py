"""Handwritten digits from a folder of MNIST-C, IDX files of MNIST, an npz file, or scikit-learn.

All files are read without pickle. A digit has the same number (row) under all conditions.
"""

import gzip
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from voxout.data_manifests.errors import UserError

from .corruptions import CLEAN, CORRUPTIONS

EDGE = 28
CLASSES = tuple(range(10))
_ARRAYS = "{part}_images.npy", "{part}_labels.npy"
_IDX = ("train", "t10k")


@dataclass(frozen=True, eq=False)
class Joined:
    """Concatenation of memory-mapped arrays without a copy (MNIST-C is 880 MB)."""

    parts: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        out = np.empty((len(rows), EDGE, EDGE), np.uint8)
        start = 0
        for part in self.parts:
            here = (rows >= start) & (rows < start + len(part))
            out[here] = part[rows[here] - start]
            start += len(part)
        return out


@dataclass(frozen=True, eq=False)
class Digits:
    """Digits and their source.

    Attributes
    ----------
    images : ndarray of uint8, (N, 28, 28), or Joined
        Clean images.
    labels : ndarray of int64, (N,)
    source : str
        Description for the report, without a path.
    test_from : int or None
        First row of the test set of the data; None without a test set.
    corrupted : mapping of str to Joined
        Corrupted images of the data, by corruption; empty if they are to be computed.
    missing : tuple of str
        Corruptions that are missing from a folder of MNIST-C.
    """

    images: np.ndarray | Joined
    labels: np.ndarray
    source: str
    test_from: int | None = None
    corrupted: Mapping[str, Joined] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Clean and all available corruptions."""
        return (CLEAN, *(name for name in CORRUPTIONS if name not in self.missing))

    def fingerprint(self) -> str:
        """Hash of the digits; of large sets, only every k-th digit is used."""
        some = np.arange(0, len(self.images), max(len(self.images) // 2000, 1))
        digest = hashlib.sha256(repr((len(self.images), self.conditions, sorted(self.corrupted))).encode())
        for array in (self.labels, self.images[some], *(self.corrupted[n][some] for n in sorted(self.corrupted))):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def read_digits(path: Path | None) -> Digits:
    """Read digits.

    Parameters
    ----------
    path : Path or None
        A folder of MNIST-C (``CORRUPTION/{train,test}_images.npy`` and ``..._labels.npy``, with ``identity``), a folder
        of the IDX files of MNIST, gzipped or not, or an npz with `images` and `labels`. None: the 1,797 digits of 8x8
        pixels of scikit-learn, enlarged.

    Raises
    ------
    UserError
        The path is not a known source, or arrays have an invalid shape or type.
    """
    if path is None:
        return _scikit_learn_digits()
    if path.is_dir() and (path / CLEAN).is_dir():
        return _mnist_c_folder(path)
    if path.is_dir():
        return _idx_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    raise UserError(
        f"{path}: {'not an npz file' if path.exists() else 'no such file or folder'}, expected a folder of MNIST-C, a "
        "folder of the IDX files of MNIST, or an npz with images and labels. Correct --data, or omit it."
    )


def _scikit_learn_digits() -> Digits:
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # 8x8 to 20x20 in the centre of 28x28, as in MNIST.
    large = zoom(np.reshape(pixels, (-1, 8, 8)) / 16, (1, 20 / 8, 20 / 8), order=1, grid_mode=True, mode="nearest")
    images = np.pad(np.rint(255 * large.clip(0, 1)).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
    return Digits(images, np.asarray(labels, np.int64), "1,797 digits of 8x8 pixels of scikit-learn, enlarged")


def _npz(path: Path) -> Digits:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("images", "labels") if name not in arrays.files]
            if missing:
                raise UserError(
                    f"{path.name}: found {', '.join(arrays.files) or 'no arrays'}, expected the arrays images and "
                    "labels. Save the file with numpy.savez(file, images=..., labels=...)."
                )
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name}: not readable, expected an npz of plain arrays. Save it again.") from error
    return Digits(*checked(images, labels, path.name), f"{len(labels):,} digits of {path.name}")


def _idx_folder(path: Path) -> Digits:
    pairs = [(_find_idx(path, f"{part}-images"), _find_idx(path, f"{part}-labels")) for part in _IDX]
    found = [(images, labels) for images, labels in pairs if images and labels]
    if not found:
        raise UserError(
            f"{path}: found neither identity/ of MNIST-C nor IDX files of MNIST, expected for instance "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte. Choose another folder with --data."
        )
    parts = [checked(_read_idx(images), _read_idx(labels), images.name) for images, labels in found]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test_from = len(parts[0][0]) if len(parts) == 2 else None
    return Digits(images, labels, f"{len(labels):,} digits of the IDX files of MNIST", test_from)


def _find_idx(folder: Path, start: str) -> Path | None:
    return next(iter(sorted(f for f in folder.glob(f"{start}*") if f.suffix in ("", ".gz") or "ubyte" in f.name)), None)


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file: 0, 0, type (8: uint8), number of axes, length of each axis (big-endian int32), data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise UserError(
            f"{path.name}: truncated or not an IDX file, expected an IDX file. Download it again."
        ) from error
    start = 4 + 4 * axes
    if zero != 0 or kind != 8 or len(content) - start != np.prod(shape):
        raise UserError(
            f"{path.name}: found type {kind}, shape {shape} and {len(content) - start} bytes of data, expected type 8 "
            "(bytes) and data that match the shape. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _mnist_c_folder(path: Path) -> Digits:
    clean, labels, test_from = _mnist_c_condition(path / CLEAN)
    missing = tuple(name for name in CORRUPTIONS if not (path / name).is_dir())
    corrupted = {}
    for name in CORRUPTIONS:
        if name in missing:
            continue
        parts, corrupted_labels, _ = _mnist_c_condition(path / name)
        if not np.array_equal(corrupted_labels, labels):
            raise UserError(
                f"{name}: labels differ from those of {CLEAN}, expected the same digits in the same order under "
                "every corruption. Unpack MNIST-C again."
            )
        corrupted[name] = parts
    return Digits(clean, labels, f"{len(labels):,} digits of MNIST-C", test_from, corrupted, missing)


def _mnist_c_condition(folder: Path) -> tuple[Joined, np.ndarray, int]:
    parts = []
    for part in ("train", "test"):
        arrays = {}
        for name in _ARRAYS:
            file = folder / name.format(part=part)
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                reason = "not readable as a plain array" if file.exists() else "missing"
                raise UserError(f"{folder.name}/{file.name}: {reason}. Unpack MNIST-C again.") from error
        images, labels = (arrays[name] for name in _ARRAYS)
        parts.append(checked(images, labels, f"{folder.name}/{part}_images.npy"))
    return Joined(tuple(p[0] for p in parts)), np.concatenate([p[1] for p in parts]), len(parts[0][0])


def checked(images: np.ndarray, labels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert images to (N, 28, 28) uint8 and labels to (N,) int64.

    Raises
    ------
    UserError
        A shape or type is invalid, or labels are not from 0 to 9.
    """
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.shape[1:] != (EDGE, EDGE) or images.dtype != np.uint8:
        raise UserError(
            f"{name}: images have the shape {images.shape} and type {images.dtype}, expected (N, 28, 28) or "
            "(N, 28, 28, 1) and uint8. Convert the images."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{name}: labels have the shape {labels.shape} and type {labels.dtype}, expected ({len(images)},) and "
            "integers. Convert the labels."
        )
    if len(labels) and not set(np.unique(labels)) <= set(CLASSES):
        raise UserError(
            f"{name}: labels range from {labels.min()} to {labels.max()}, expected 0 to 9. Check the labels."
        )
    return images, labels.astype(np.int64)
