"""Codes on a common scale: at every location, mean 0 and covariance 1 over the controls.

Some tens of controls give a poor covariance at one voxel. Each location therefore takes its own mean, and pools the
second moments about that mean over its 3x3x3 neighbours. With the neighbours' means at a distance from its own, this
counts both the spread between subjects and the change from voxel to voxel: a head that is a voxel out of place is not
yet an anomaly.

A control whose codes are NaN at a location is missing there: it counts for nothing.
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
"""Added to every eigenvalue, as a share of the brain's mean variance."""
_NUMBERS_AT_ONCE = 32_000_000
_LOCATIONS_AT_ONCE = 32_768


@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map at each location.

    Attributes
    ----------
    mean : ndarray, (P, d), float32
    packed : ndarray, (P, d * (d + 1) / 2), float16
        The rows of `factor` one after the other, without the zeros: of a brain at 1 mm, a gigabyte becomes half of one.
        Times `unit`, so that quiet features do not overflow.
    unit : float
        About the brain's standard deviation, a power of two.
    mask_hash : str
        Of the `VoxelMask` whose locations these are.
    """

    mean: np.ndarray
    packed: np.ndarray
    unit: float
    mask_hash: str

    def factor(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Inverse of the covariance's Cholesky factor, lower triangular: ``factor @ (z - mean)``.

        Of the locations ``start:stop``, (stop - start, d, d) float32.
        """
        packed, dimension = self.packed[start:stop], self.mean.shape[1]
        factor = np.zeros((len(packed), dimension, dimension), np.float32)
        for row, begin in enumerate(np.cumsum(range(dimension))):
            factor[:, row, : row + 1] = packed[:, begin : begin + row + 1]
        factor /= np.float32(self.unit)
        return factor

    def whiten(self, latents: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Whiten the codes of locations ``start:stop``.

        Parameters
        ----------
        latents : ndarray, (..., stop - start, d)
        start, stop : int

        Returns
        -------
        ndarray, (..., stop - start, d), float32
            Mahalanobis distances became Euclidean ones.
        """
        stop = len(self.mean) if stop is None else stop
        if latents.shape[-2:] != (stop - start, self.mean.shape[1]):
            raise ValueError(f"latents {latents.shape} do not end in {(stop - start, self.mean.shape[1])}")
        out = np.empty(latents.shape, np.float32)
        for a in range(start, stop, _LOCATIONS_AT_ONCE):
            b = min(a + _LOCATIONS_AT_ONCE, stop)
            here = slice(a - start, b - start)
            centred = np.asarray(latents[..., here, :], np.float32) - self.mean[a:b]
            flat = torch.from_numpy(centred.reshape(-1, b - a, centred.shape[-1])).permute(1, 2, 0)
            white = torch.from_numpy(self.factor(a, b)) @ flat
            out[..., here, :] = white.permute(2, 0, 1).numpy().reshape(centred.shape)
        return out

    def save(self, path: Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        return write_tensors(
            path, {"mean": self.mean, "packed": self.packed}, unit=repr(self.unit), mask_hash=self.mask_hash
        )

    @classmethod
    def load(cls, path: Path) -> "Whitening":
        """Read what `save` wrote."""
        if not path.exists():
            raise UserError(f"{private(path)}: no such file. Run the stage fit first.")
        with opened_tensors(path, "whole whitening") as file:
            # Not looked through for numbers that are not finite: at 1 mm it is half a gigabyte, read for each subject.
            mean, packed = file.array("mean", "float32", 2), file.array("packed", "float16", 2, finite=False)
            locations, dimension = mean.shape
            if packed.shape != (locations, dimension * (dimension + 1) // 2):
                raise ValueError(f"its factors are {packed.shape}, for means {mean.shape}")
            return cls(mean, packed, file.number("unit"), file.about["mask_hash"])


@dataclass(frozen=True, eq=False)
class WhitenedLatents:
    """A latent store seen through a whitening; whitened block by block as it is read."""

    latents: LatentStore | np.ndarray
    whitening: Whitening

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, P, d)."""
        return self.latents.shape  # type: ignore[return-value]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``latents[:, a:b]``, (S, b - a, d) float32."""
        start, stop, _ = index[1].indices(self.shape[1])
        return self.whitening.whiten(self.latents[index], start, stop)


def fit_whitening(
    latents: LatentStore | np.ndarray, grid: VoxelMask, *, shrinkage: float, diagonal: bool = False
) -> Whitening:
    """Estimate means and pooled covariances from the controls' codes.

    Parameters
    ----------
    latents : (S, P, d)
        Read in blocks; memory grows with the result, not with S * P. All NaN where a control is missing.
    grid : VoxelMask
    shrinkage : float in [0, 1]
        Weight of the whole brain's average covariance in each location's, brought to the location's own variance:
        white matter varies little, and the brain's average itself would drown its covariance.
    diagonal : bool
        Leave the covariances out: every number is divided by its own standard deviation alone.

    Returns
    -------
    Whitening

    Raises
    ------
    UserError
        Fewer than two subjects, in all or at a location; codes of another mask, or codes that are all alike.
    """
    n_subjects, n_locations, dimension = latents.shape
    if n_subjects < 2:
        raise UserError(f"Whitening: {n_subjects} control, expected at least 2. Add controls to the training split.")
    if n_locations != grid.size or getattr(latents, "mask_hash", grid.mask_hash) != grid.mask_hash:
        raise UserError(
            f"Whitening: the codes are of {n_locations} locations and another mask than the grid's ({grid.size} "
            "locations). Encode the subjects again."
        )
    mean = np.empty((n_locations, dimension), np.float32)
    rows, columns = np.tril_indices(dimension)
    pooled = np.empty((n_locations, len(rows)), np.float32)
    for slab in _slabs(grid, len(rows) + dimension):
        slab_mean, slab_pooled = _pooled_moments(latents, grid, slab, rows, columns)
        mean[slab.start : slab.stop], pooled[slab.start : slab.stop] = slab_mean, slab_pooled
    on_diagonal = np.flatnonzero(rows == columns)
    brain = pooled.mean(axis=0, dtype=np.float64)
    variance = brain[on_diagonal].mean()
    if not variance > 0:
        raise UserError(
            "Whitening: the controls' features are all alike, expected some that differ. Look at the prepared scans, "
            "or train the encoder again."
        )
    unit = 2.0 ** round(float(np.log2(variance)) / 2)
    floor = _FLOOR * variance * np.eye(dimension)
    packed = np.empty(pooled.shape, np.float16)
    for a in range(0, n_locations, _LOCATIONS_AT_ONCE):
        b = min(a + _LOCATIONS_AT_ONCE, n_locations)
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
    return Whitening(mean, packed, unit, grid.mask_hash)


@dataclass(frozen=True)
class _Slab:
    """Locations ``start:stop`` fill the planes ``x_low:x_high``: C order makes a run of planes one run of locations."""

    x_low: int
    x_high: int
    start: int
    stop: int


def _slabs(grid: VoxelMask, numbers_per_voxel: int) -> list[_Slab]:
    _, size_y, size_z = grid.grid.size_vox
    thickness = max(1, _NUMBERS_AT_ONCE // (size_y * size_z * numbers_per_voxel) - 2)
    x = grid.locations[:, 0]
    slabs = []
    for x_low in range(int(x[0]), int(x[-1]) + 1, thickness):
        start, stop = np.searchsorted(x, [x_low, x_low + thickness])
        if stop > start:
            slabs.append(_Slab(x_low, x_low + thickness, int(start), int(stop)))
    return slabs


def _pooled_moments(latents, grid: VoxelMask, slab: _Slab, rows: np.ndarray, columns: np.ndarray):
    """Means (n, d), and pooled second moments about them, (n, d(d+1)/2), of one slab."""
    x = grid.locations[:, 0]
    # One plane more on either side: the slab's neighbours.
    first, last = np.searchsorted(x, [slab.x_low - 1, slab.x_high + 1])
    block = torch.from_numpy(np.asarray(latents[:, first:last], dtype=np.float32)).permute(1, 2, 0)
    # One number tells whether a subject is there: to look at all of them would take as long as all the rest.
    missing = torch.isnan(block[:, :1])
    incomplete = bool(missing.any())
    if incomplete:
        block = block.masked_fill(missing, 0)
    if not bool(torch.isfinite(block).all()):
        raise UserError("Whitening: codes are not finite, expected finite ones. Encode the subjects again.")
    count = block.shape[2] - missing.sum(dim=2)
    if bool((count < 2).any()):
        lonely = first + np.flatnonzero((count < 2).numpy())
        raise UserError(
            f"Whitening: fewer than 2 controls have features at {named(lonely)}, expected at least 2. Leave these "
            "locations out of the mask."
        )
    means = block.sum(dim=2) / count
    # About one common centre, so that a mean far from 0 costs no digits.
    centre = means.mean(dim=0)
    block, local = block - means[:, :, None], (means - centre).numpy()
    if incomplete:
        block.masked_fill_(missing, 0)
    within = (block @ block.transpose(1, 2)).numpy()[:, rows, columns]
    freedom = (count - 1).numpy().astype(np.float32)
    moments = np.concatenate([within + freedom * local[:, rows] * local[:, columns], freedom * local, freedom], axis=1)
    here = slice(slab.start - first, slab.stop - first)
    summed = sum_over_neighbours(moments, grid.locations[first:last])[here]
    second, neighbours = np.split(summed[:, :-1] / summed[:, -1:], [len(rows)], axis=1)
    own = local[here]
    # With means over neighbours u, each weighing as many as there are controls less one:
    # mean_u (m_u - m_v)(m_u - m_v)' = mean_u m_u m_u' - m_v (mean_u m_u)' - (mean_u m_u) m_v' + m_v m_v'
    cross = own[:, rows] * neighbours[:, columns] + neighbours[:, rows] * own[:, columns]
    return means.numpy()[here], second - cross + own[:, rows] * own[:, columns]


def sum_over_neighbours(values: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Sums of (n, k) values over each location's 3x3x3 neighbourhood, itself included; beyond the locations, 0."""
    low = locations.min(axis=0) - 1
    size = locations.max(axis=0) - low + 2
    index = tuple((locations - low).T)
    box = np.zeros((*size, values.shape[1]), np.float32)
    box[index] = values
    for axis in range(3):
        lines = np.moveaxis(box, axis, 0)
        summed = lines.copy()
        summed[1:] += lines[:-1]
        summed[:-1] += lines[1:]
        box = np.moveaxis(summed, 0, axis)
    return box[index]
