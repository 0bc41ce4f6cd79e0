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
import torch

from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..ocsvm.dual import named
from ..tensor_file import opened_tensors, write_tensors
from .feature_store import LatentStore

_FLOOR = 1e-4
"""Added to every eigenvalue, as a share of the mean variance in the brain."""
SHRINKAGE = 0.01
"""Weight of the whole brain's covariance, scaled to the voxel's variance, in the covariance of each voxel."""
_NUMBERS_AT_ONCE = 32_000_000
_VOXELS_AT_ONCE = 32_768


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
        out = np.empty(latents.shape, np.float32)
        for a in range(start, stop, _VOXELS_AT_ONCE):
            b = min(a + _VOXELS_AT_ONCE, stop)
            block = slice(a - start, b - start)
            centred = np.asarray(latents[..., block, :], np.float32) - self.mean[a:b]
            flat = torch.from_numpy(centred.reshape(-1, b - a, centred.shape[-1])).permute(1, 2, 0)
            white = torch.from_numpy(self.factor(a, b)) @ flat
            out[..., block, :] = white.permute(2, 0, 1).numpy().reshape(centred.shape)
        return out

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
    latents: LatentStore | np.ndarray, mask: VoxelMask, *, shrinkage: float, diagonal: bool = False
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
        slab_mean, slab_pooled = _pooled_moments(latents, mask, slab, rows, columns)
        mean[slab.start : slab.stop], pooled[slab.start : slab.stop] = slab_mean, slab_pooled
    on_diagonal = np.flatnonzero(rows == columns)
    brain = pooled.mean(axis=0, dtype=np.float64)
    variance = brain[on_diagonal].mean()
    if not variance > 0:
        raise UserError(
            "Whitening: the controls' features are identical, expected features that differ. Check the prepared scans, "
            "or train the encoder again."
        )
    unit = 2.0 ** round(float(np.log2(variance)) / 2)
    floor = _FLOOR * variance * np.eye(dimension)
    packed = np.empty(pooled.shape, np.float16)
    for a in range(0, n_voxels, _VOXELS_AT_ONCE):
        b = min(a + _VOXELS_AT_ONCE, n_voxels)
        own = pooled[a:b].astype(np.float64)
        scale = own[:, on_diagonal].mean(axis=1, keepdims=True) / variance
        covariance = np.empty((b - a, dimension, dimension))
        covariance[:, rows, columns] = (1 - shrinkage) * own + shrinkage * scale * brain
        covariance[:, columns, rows] = covariance[:, rows, columns]
        if diagonal:
            covariance *= np.eye(dimension)
        cholesky = torch.linalg.cholesky(torch.from_numpy(covariance + floor))
        inverse = torch.linalg.solve_triangular(cholesky, torch.eye(dimension, dtype=torch.float64), upper=False)
        packed[a:b] = inverse.numpy()[:, rows, columns] * unit
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


def _pooled_moments(latents, mask: VoxelMask, slab: _Slab, rows: np.ndarray, columns: np.ndarray):
    """Means (n, d), and pooled second moments about them, (n, d(d+1)/2), of one slab."""
    x = mask.locations[:, 0]
    # Include one more plane on either side, for the neighbours.
    first, last = np.searchsorted(x, [slab.x_low - 1, slab.x_high + 1])
    block = torch.from_numpy(np.asarray(latents[:, first:last], dtype=np.float32)).permute(1, 2, 0)
    # The first feature shows whether a subject is missing; checking all features would double the run time.
    missing = torch.isnan(block[:, :1])
    incomplete = bool(missing.any())
    if incomplete:
        block = block.masked_fill(missing, 0)
    if not bool(torch.isfinite(block).all()):
        raise UserError("Whitening: features are not finite, expected finite values. Encode the subjects again.")
    count = block.shape[2] - missing.sum(dim=2)
    if bool((count < 2).any()):
        too_few = first + np.flatnonzero((count < 2).numpy())
        raise UserError(
            f"Whitening: fewer than 2 controls have features at {named(too_few)}, expected at least 2. Remove these "
            "voxels from the mask."
        )
    means = block.sum(dim=2) / count
    # Relative to a common centre, for precision where the mean is far from 0.
    centre = means.mean(dim=0)
    block, local = block - means[:, :, None], (means - centre).numpy()
    if incomplete:
        block.masked_fill_(missing, 0)
    within = (block @ block.transpose(1, 2)).numpy()[:, rows, columns]
    freedom = (count - 1).numpy().astype(np.float32)
    moments = np.concatenate([within + freedom * local[:, rows] * local[:, columns], freedom * local, freedom], axis=1)
    inner = slice(slab.start - first, slab.stop - first)
    summed = sum_over_neighbours(moments, mask.locations[first:last])[inner]
    second, neighbours = np.split(summed[:, :-1] / summed[:, -1:], [len(rows)], axis=1)
    own = local[inner]
    # With means over the neighbours u, weighted by the number of controls minus one:
    # mean_u (m_u - m_v)(m_u - m_v)' = mean_u m_u m_u' - m_v (mean_u m_u)' - (mean_u m_u) m_v' + m_v m_v'
    cross = own[:, rows] * neighbours[:, columns] + neighbours[:, rows] * own[:, columns]
    return means.numpy()[inner], second - cross + own[:, rows] * own[:, columns]


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
    low = voxels.min(axis=0) - 1
    size = voxels.max(axis=0) - low + 2
    index = tuple((voxels - low).T)
    box = np.zeros((*size, values.shape[1]), np.float32)
    box[index] = values
    for axis in range(3):
        lines = np.moveaxis(box, axis, 0)
        summed = lines.copy()
        summed[1:] += lines[:-1]
        summed[:-1] += lines[1:]
        box = np.moveaxis(summed, 0, axis)
    return box[index]
