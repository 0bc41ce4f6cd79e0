"""Voxel-wise whitening of features: mean 0 and identity covariance over the controls.

Some tens of controls give a poor estimate of the covariance at a single voxel. The mean is therefore estimated at each
voxel, and the second moments about that mean are pooled over the 3x3x3 neighbours. Since the means of the neighbours
differ, the pooled covariance contains both the variance between subjects and the change from voxel to voxel, so that a
misalignment by one voxel is not scored as an anomaly.

Controls whose features are NaN at a voxel are missing there and are ignored.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..ocsvm.blocks import as_floats, in_order, read_block
from ..ocsvm.dual import named, thread_count
from ..tensor_file import opened_tensors, write_tensors
from . import kernels
from .feature_store import LatentStore

_FLOOR = 1e-4
"""Added to every eigenvalue, as a share of the mean variance in the brain."""
SHRINKAGE = 0.01
"""Weight of the whole brain's covariance, scaled to the voxel's variance, in the covariance of each voxel."""
_NUMBERS_AT_ONCE = 32_000_000
_VOXELS_AT_ONCE = 32_768
_BLOCK_NUMBERS = 500_000
"""Values that fit into the cache of a core."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """Whitening transform at each voxel.

    Attributes
    ----------
    mean : ndarray, (P, d), float32
    packed : ndarray, (P, d * (d + 1) / 2), float16
        Rows of the lower triangle of `factor`, times `unit` to avoid overflow with features of low variance. Packing
        halves the size, to half a gigabyte for a brain at 1 mm.
    unit : float
        Standard deviation of the features in the brain, rounded to a power of two.
    mask_hash : str
        Hash of the `VoxelMask` to which the voxels belong.
    """

    mean: np.ndarray
    packed: np.ndarray
    unit: float
    mask_hash: str

    def factor(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Unpack the inverse Cholesky factor of the covariance at the voxels ``start:stop``.

        Returns
        -------
        ndarray, (stop - start, d, d), float32
            Lower triangular; ``factor @ (z - mean)`` is white.
        """
        packed, dimension = self.packed[start:stop], self.mean.shape[1]
        factor = np.zeros((len(packed), dimension, dimension), np.float32)
        for row, begin in enumerate(np.cumsum(range(dimension))):
            factor[:, row, : row + 1] = packed[:, begin : begin + row + 1]
        factor /= np.float32(self.unit)
        return factor

    def whiten(self, latents: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Whiten the features of the voxels ``start:stop``.

        Parameters
        ----------
        latents : ndarray, (..., stop - start, d)
        start, stop : int

        Returns
        -------
        ndarray, (..., stop - start, d), float32
            Features whose Euclidean distances are the Mahalanobis distances of `latents`.
        """
        stop = len(self.mean) if stop is None else stop
        if latents.shape[-2:] != (stop - start, self.mean.shape[1]):
            raise ValueError(f"latents {latents.shape} do not end in {(stop - start, self.mean.shape[1])}")
        values = np.ascontiguousarray(latents, np.float32).reshape(-1, stop - start, self.mean.shape[1])
        out = np.empty(values.shape, np.float32)
        for a in range(start, stop, _VOXELS_AT_ONCE):
            b = min(a + _VOXELS_AT_ONCE, stop)
            factors = as_floats(self.packed[a:b])
            factors /= np.float32(self.unit)
            kernels.whiten(values, a - start, np.ascontiguousarray(self.mean[a:b]), factors, out)
        return out.reshape(latents.shape)

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        return write_tensors(
            path, {"mean": self.mean, "packed": self.packed}, unit=repr(self.unit), mask_hash=self.mask_hash
        )

    @classmethod
    def load(cls, path: Path) -> "Whitening":
        """Load a saved whitening.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        if not path.exists():
            raise UserError(f"{private(path)}: no such file. Run the stage fit first.")
        with opened_tensors(path, "complete whitening") as file:
            # The factors are not checked for finite values: half a gigabyte at 1 mm, read for each subject.
            mean, packed = file.array("mean", "float32", 2), file.array("packed", "float16", 2, finite=False)
            n_voxels, dimension = mean.shape
            if packed.shape != (n_voxels, dimension * (dimension + 1) // 2):
                raise ValueError(f"factors {packed.shape} do not match means {mean.shape}")
            return cls(mean, packed, file.number("unit"), file.metadata["mask_hash"])


def load_whitening(path: Path, mask: VoxelMask) -> Whitening:
    """Load a saved whitening for the voxels of a mask.

    Raises
    ------
    UserError
        The file is missing, damaged, or was fitted on another brain mask.
    """
    whitening = Whitening.load(path)
    if len(whitening.mean) != mask.size or whitening.mask_hash != mask.mask_hash:
        raise UserError(
            f"{private(path.parent, 'its folder')}: its detectors were fitted on another brain mask, expected that of "
            "the model. Fit the model again."
        )
    return whitening


@dataclass(frozen=True, eq=False)
class WhitenedLatents:
    """Latent store whose blocks are whitened as they are read."""

    latents: LatentStore | np.ndarray
    whitening: Whitening

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        subjects, voxels, size = self.latents.shape
        return subjects, voxels, size

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``, (S, b - a, d) float32."""
        start, stop, _ = index[1].indices(self.shape[1])
        return self.whitening.whiten(self.latents[index], start, stop)


def fit_whitening(
    latents: LatentStore | np.ndarray,
    mask: VoxelMask,
    *,
    shrinkage: float,
    diagonal: bool = False,
    jobs: int | None = None,
) -> Whitening:
    """Estimate means and pooled covariances from the controls' features.

    Parameters
    ----------
    latents : (S, P, d)
        Features of the controls; read in blocks, so that memory does not grow with S * P. All NaN at voxels where a
        control is missing.
    mask : VoxelMask
    shrinkage : float in [0, 1]
        Weight of the average covariance of the brain in the covariance of each voxel. The average is scaled to the
        variance of the voxel, since it would otherwise dominate in white matter, which varies little.
    diagonal : bool
        Ignore the covariances: each feature is divided by its standard deviation.
    jobs : int, optional
        Number of threads; one per core by default.

    Returns
    -------
    Whitening

    Raises
    ------
    UserError
        Fewer than two controls in all or at a voxel, features of another mask, or features without variance.
    """
    n_subjects, n_voxels, dimension = latents.shape
    if n_subjects < 2:
        raise UserError(f"Whitening: {n_subjects} control, expected at least 2. Add controls to the training split.")
    if n_voxels != mask.size or getattr(latents, "mask_hash", mask.mask_hash) != mask.mask_hash:
        raise UserError(
            f"Whitening: the features belong to another mask ({n_voxels} voxels), expected that of the model "
            f"({mask.size} voxels). Encode the subjects again."
        )
    mean = np.empty((n_voxels, dimension), np.float32)
    rows, columns = np.tril_indices(dimension)
    pooled = np.empty((n_voxels, len(rows)), np.float32)
    for slab in _slabs(mask, len(rows) + dimension):
        inner = slice(slab.start, slab.stop)
        mean[inner], pooled[inner] = _pooled_moments(latents, mask, slab, thread_count(jobs))
    on_diagonal = np.flatnonzero(rows == columns)
    brain = pooled.mean(axis=0, dtype=np.float64)
    variance = brain[on_diagonal].mean()
    if not variance > 0:
        raise UserError(
            "Whitening: the controls' features are identical, expected features that differ. Check the prepared scans, "
            "or train the encoder again."
        )
    unit = 2.0 ** round(float(np.log2(variance)) / 2)
    packed = np.empty(pooled.shape, np.float16)

    def invert(start: int, stop: int) -> None:
        own = pooled[start:stop].astype(np.float64)
        scale = own[:, on_diagonal].mean(axis=1, keepdims=True) / variance
        covariance = (1 - shrinkage) * own + shrinkage * scale * brain
        if diagonal:
            covariance *= rows == columns
        factors = np.empty(covariance.shape, np.float32)
        kernels.inverse_factors(covariance, _FLOOR * variance, factors)
        packed[start:stop] = factors * np.float32(unit)

    for _ in in_order(invert, n_voxels, _VOXELS_AT_ONCE, thread_count(jobs)):
        pass
    return Whitening(mean, packed, unit, mask.mask_hash)


@dataclass(frozen=True)
class _Slab:
    """Planes ``x_low:x_high`` of the grid, which contain the voxels ``start:stop`` of the mask."""

    x_low: int
    x_high: int
    start: int
    stop: int


def _slabs(mask: VoxelMask, numbers_per_voxel: int) -> list[_Slab]:
    """Divide the grid into slabs that fit into memory."""
    _, size_y, size_z = mask.grid.size_vox
    thickness = max(1, _NUMBERS_AT_ONCE // (size_y * size_z * numbers_per_voxel) - 2)
    x = mask.locations[:, 0]
    slabs = []
    for x_low in range(int(x[0]), int(x[-1]) + 1, thickness):
        start, stop = np.searchsorted(x, [x_low, x_low + thickness])
        if stop > start:
            slabs.append(_Slab(x_low, x_low + thickness, int(start), int(stop)))
    return slabs


def _pooled_moments(latents, mask: VoxelMask, slab: _Slab, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, d), and pooled second moments about them, (n, d(d+1)/2), of one slab."""
    x = mask.locations[:, 0]
    # Include one more plane on either side, for the neighbours.
    first, last = np.searchsorted(x, [slab.x_low - 1, slab.x_high + 1])
    n_subjects, _, dimension = latents.shape
    n, size = last - first, dimension * (dimension + 1) // 2
    means, within = np.empty((n, dimension), np.float32), np.empty((n, size), np.float32)
    count = np.empty(n, np.int64)

    def fill(start: int, stop: int) -> None:
        block = read_block(latents, first + start, first + stop).astype(np.float32, copy=False)
        kernels.moments(block, means[start:stop], within[start:stop], count[start:stop])

    for _ in in_order(fill, n, max(_BLOCK_NUMBERS // (n_subjects * dimension), 1), threads):
        pass
    if (count < 0).any():
        raise UserError("Whitening: features are not finite, expected finite values. Encode the subjects again.")
    if (count < 2).any():
        raise UserError(
            f"Whitening: fewer than 2 controls have features at {named(first + np.flatnonzero(count < 2))}, expected "
            "at least 2. Remove these voxels from the mask."
        )
    # Relative to a common centre, for precision where the mean is far from 0.
    local = means - means.mean(axis=0, dtype=np.float64).astype(np.float32)
    summed = np.empty((n, size + dimension + 1), np.float32)
    kernels.about_centre(within, local, (count - 1).astype(np.float32), summed)
    summed = sum_over_neighbours(summed, mask.locations[first:last])
    pooled = np.empty((n, size), np.float32)
    kernels.about_own_mean(summed, local, pooled)
    inner = slice(slab.start - first, slab.stop - first)
    return means[inner], pooled[inner]


def sum_over_neighbours(values: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Sum values over the 3x3x3 neighbourhood of each voxel, including the voxel itself.

    Parameters
    ----------
    values : ndarray, (n, k)
    voxels : ndarray of int, (n, 3)
        Voxel indices; other voxels count as 0.

    Returns
    -------
    ndarray, (n, k), float32
    """
    low = voxels.min(axis=0)
    x, y, z = (int(size) for size in voxels.max(axis=0) - low + 1)
    k = values.shape[1]
    box = np.zeros((x, y, z, k), np.float32)
    index = tuple((voxels - low).T)
    box[index] = values
    for shape in ((1, x, y * z * k), (x, y, z * k), (x * y, z, k)):
        kernels.sum_of_three(box.reshape(shape))
    return box[index]
