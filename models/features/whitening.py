"""Voxel-wise whitening of features: mean 0 and identity covariance over the controls.

Some tens of controls give a poor estimate of the covariance at a single voxel. The mean is therefore estimated at each
voxel, and the second moments about that mean are pooled over the 3x3x3 neighbours. Since the means of the neighbours
differ, the pooled covariance contains both the variance between subjects and the change from voxel to voxel, so that a
misalignment by one voxel is not scored as an anomaly.

Controls whose features are NaN at a voxel are missing there and are ignored.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError, private
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..ocsvm.blocks import as_floats, as_halves
from ..tensor_file import another_mask_error, opened_tensors, write_tensors
from . import kernels
from .feature_store import LatentStore
from .moments import SlabMoments, SubsetMoments
from .subsets import Subsets

_FLOOR = 1e-4
"""Added to every eigenvalue, as a share of the mean variance in the brain."""
SHRINKAGE = 0.01
"""Weight of the whole brain's covariance, scaled to the voxel's variance, in the covariance of each voxel."""
_VOXELS_AT_ONCE = 32_768
_FACTORS_AT_ONCE = 512


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

    @classmethod
    def empty(cls, n_voxels: int, dimension: int, unit: float, mask_hash: str) -> "Whitening":
        """Return a whitening to be filled slab by slab."""
        packed = np.empty((n_voxels, dimension * (dimension + 1) // 2), np.float16)
        return cls(np.empty((n_voxels, dimension), np.float32), packed, unit, mask_hash)

    def part(self, voxels: slice) -> "Whitening":
        """Return the whitening of some of the voxels, without a copy."""
        return Whitening(self.mean[voxels], self.packed[voxels], self.unit, self.mask_hash)

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

    def whiten(self, latents: np.ndarray) -> np.ndarray:
        """Whiten the features of all voxels.

        Parameters
        ----------
        latents : ndarray, (..., P, d)

        Returns
        -------
        ndarray, (..., P, d), float32
            Features whose Euclidean distances are the Mahalanobis distances of `latents`.
        """
        if latents.shape[-2:] != self.mean.shape:
            raise ValueError(f"latents {latents.shape} do not end in {self.mean.shape}")
        values = np.ascontiguousarray(latents, np.float32).reshape(-1, *self.mean.shape)
        everyone, n_voxels, d = np.arange(len(values)), *self.mean.shape
        slopes, confounds = np.empty((0, n_voxels, d), np.float16), np.empty((len(values), 0))
        return self.whiten_residuals(values, everyone, slopes, confounds).reshape(latents.shape)

    def whiten_residuals(
        self, features: np.ndarray, subjects: np.ndarray, slopes: np.ndarray, confounds: np.ndarray
    ) -> np.ndarray:
        """Regress confounds out of the features of some subjects, and whiten the residuals.

        Parameters
        ----------
        features : ndarray, (all subjects, P, d), float32
        subjects : ndarray of int, (S,)
        slopes : ndarray, (k, P, d), float16
            See `ConfoundRegression`.
        confounds : ndarray, (S, k)

        Returns
        -------
        ndarray, (S, P, d), float32
        """
        out = np.empty((len(subjects), *self.mean.shape), np.float32)
        by_confound = np.ascontiguousarray(confounds.T, np.float32)
        for start in range(0, len(self.mean), _VOXELS_AT_ONCE):
            voxels = slice(start, start + _VOXELS_AT_ONCE)
            factors, own_slopes = as_floats(self.packed[voxels]), as_floats(slopes[:, voxels])
            factors /= np.float32(self.unit)
            mean = np.ascontiguousarray(self.mean[voxels])
            kernels.whiten(features, subjects, start, by_confound, own_slopes, mean, factors, out)
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
        raise another_mask_error(path.parent, "detectors were")
    return whitening


@dataclass(frozen=True, eq=False)
class BrainCovariance:
    """Covariance of the whole brain, by which those of single voxels are regularised.

    Attributes
    ----------
    packed : ndarray, (d(d+1)/2,), float64
        Mean over the voxels of their packed covariances.
    shrinkage : float in [0, 1]
        Weight of the whole brain's covariance in that of each voxel. It is scaled to the variance of the voxel, since
        it would otherwise dominate in white matter, which varies little.
    diagonal : bool
        Ignore the covariances: each feature is divided by its standard deviation.

    Raises
    ------
    UserError
        Features without variance.
    """

    packed: np.ndarray
    shrinkage: float
    diagonal: bool

    def __post_init__(self):
        if not self.variance > 0:
            raise UserError(
                "Whitening: the controls' features are identical, expected features that differ. Check the prepared "
                "scans, or train the encoder again."
            )

    @property
    def _on_diagonal(self) -> np.ndarray:
        """Which packed elements are on the diagonal, (d(d+1)/2,) bool."""
        dimension = int((np.sqrt(8 * len(self.packed) + 1) - 1) / 2)
        rows, columns = np.tril_indices(dimension)
        return rows == columns

    @property
    def variance(self) -> float:
        """Mean variance of the features."""
        return float(self.packed[self._on_diagonal].mean())

    @property
    def unit(self) -> float:
        """See `Whitening`."""
        return 2.0 ** round(float(np.log2(self.variance)) / 2)

    def factors(self, covariance: np.ndarray) -> np.ndarray:
        """Inverse Cholesky factors of the regularised covariances of voxels, as in `Whitening.packed`.

        Parameters
        ----------
        covariance : ndarray, (n, d(d+1)/2), float32

        Returns
        -------
        ndarray, (n, d(d+1)/2), float16
        """
        out = np.empty(covariance.shape, np.float16)
        for start in range(0, len(covariance), _FACTORS_AT_ONCE):
            own = covariance[start : start + _FACTORS_AT_ONCE]
            regularised, factors = np.empty(own.shape), np.empty(own.shape, np.float32)
            kernels.regularised(own, self.packed, self.variance, self.shrinkage, self.diagonal, regularised)
            kernels.inverse_factors(regularised, _FLOOR * self.variance, factors)
            factors *= np.float32(self.unit)
            out[start : start + _FACTORS_AT_ONCE] = as_halves(factors)
        return out


def brain_covariances(
    slabs: Iterable[SlabMoments], *, shrinkage: float, diagonal: bool = False
) -> list[BrainCovariance]:
    """Average the covariances of all voxels in slabs, for each subset of the controls.

    Raises
    ------
    UserError
        Features without variance; see also `SubsetMoments.slabs`.
    """
    summed = ((slab.slab.size, slab.covariance.sum(axis=1, dtype=np.float64)) for slab in slabs)
    n_voxels, total = functools.reduce(lambda one, other: (one[0] + other[0], one[1] + other[1]), summed)
    return [BrainCovariance(own, shrinkage, diagonal) for own in total / n_voxels]


def fit_whitening(
    features: LatentStore | np.ndarray,
    mask: VoxelMask,
    *,
    shrinkage: float,
    diagonal: bool = False,
    jobs: int | None = None,
) -> Whitening:
    """Estimate means and pooled covariances from the controls' features.

    Parameters
    ----------
    features : (S, P, d)
        Features of the controls; read in blocks, so that memory does not grow with S. All NaN at voxels where a control
        is missing.
    mask : VoxelMask
    shrinkage, diagonal
        See `BrainCovariance`.
    jobs : int, optional
        Number of threads; one per core by default.

    Raises
    ------
    UserError
        Fewer than two controls in all or at a voxel, features of another mask, or features without variance.
    """
    n_subjects, n_voxels, dimension = features.shape
    slabs = [*SubsetMoments(features, mask, Subsets.everyone(np.empty((n_subjects, 0))), jobs).slabs()]
    (brain,) = brain_covariances(slabs, shrinkage=shrinkage, diagonal=diagonal)
    whitening = Whitening.empty(n_voxels, dimension, brain.unit, mask.mask_hash)
    for slab in slabs:
        whitening.mean[slab.voxels] = slab.mean[0]
        whitening.packed[slab.voxels] = brain.factors(slab.covariance[0])
    return whitening
