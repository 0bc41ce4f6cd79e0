"""Moments of the controls' features at each voxel, for all subsets of a cross-validation at once.

Means, covariances pooled over 3x3x3 neighbours and slopes of a regression on confounds follow, for every subset, from
sums over the controls. These sums are computed once, in blocks of voxels, and everything after that no longer depends
on the number of controls. The brain is processed slab by slab; a slab is completed when the next one is there, whose
first plane holds its last neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_manifests.errors import UserError
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..ocsvm.blocks import as_floats, as_halves, in_order, read_block
from ..ocsvm.dual import named, thread_count
from . import kernels, moment_kernels
from .feature_store import LatentStore
from .slabs import Slab, joined, slabs_of, sum_over_neighbours, with_neighbours
from .subsets import Subsets

_RIDGE = 5.0
"""Ridge penalty of the regression, equivalent to five more controls that show no effect."""
_BLOCK_NUMBERS = 2_000_000
"""Values that a thread reads at a time."""
_SMALLEST_WEIGHT = 1e-9
"""Sum of the weights at a voxel, below which there are no moments."""


@dataclass(frozen=True, eq=False)
class SlabMoments:
    """Moments of the features of a slab of n voxels, after regression on the confounds, for R subsets.

    Attributes
    ----------
    slab : Slab
    slopes : ndarray, (R, k, n, d), float16
        Slopes of the regression, averaged over the neighbours.
    mean : ndarray, (R, n, d), float32
    covariance : ndarray, (R, n, d(d+1)/2), float32
        Packed covariances about the mean of the voxel, pooled over the neighbours.
    """

    slab: Slab
    slopes: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def voxels(self) -> slice:
        """Voxels of the slab in the mask."""
        return slice(self.slab.start, self.slab.stop)


@dataclass(frozen=True, eq=False)
class _Raw:
    """Moments of the n voxels of a slab before regression.

    Attributes
    ----------
    slab : Slab
    count : ndarray, (R, n)
        Sums of the weights of the controls.
    mean, within, cross : ndarray
        See `moment_kernels.subset_moments`.
    table, confound_mean, products : ndarray
        The same; all rows are filled, and the means are those of the confounds as given.
    slopes : ndarray, (R, n, k, d), float32
        Slopes of each voxel alone.
    """

    slab: Slab
    count: np.ndarray
    mean: np.ndarray
    within: np.ndarray
    cross: np.ndarray
    table: np.ndarray
    confound_mean: np.ndarray
    products: np.ndarray
    slopes: np.ndarray


@dataclass(frozen=True, eq=False)
class _Residual:
    """Moments of the n voxels of a slab after regression: those of `SlabMoments`, not yet pooled.

    Attributes
    ----------
    slab : Slab
    slopes : ndarray, (R, k, n, d), float16
    count : ndarray, (R, n)
    mean : ndarray, (R, n, d), float32
    within : ndarray, (R, n, d(d+1)/2), float32
        Sums of products of the deviations from the mean of the voxel.
    """

    slab: Slab
    slopes: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    within: np.ndarray


@dataclass(frozen=True, eq=False)
class SubsetMoments:
    """Moments of the features of controls over subsets of them, computed slab by slab.

    Attributes
    ----------
    features : (S, P, d)
        Features of the controls in the order of `subsets`; read in blocks. All NaN where a control is missing.
    mask : VoxelMask
    subsets : Subsets
    jobs : int or None
        Number of threads; one per core if None.

    Raises
    ------
    UserError
        A single control, or features of another mask.
    """

    features: LatentStore | np.ndarray
    mask: VoxelMask
    subsets: Subsets
    jobs: int | None = None

    def __post_init__(self):
        n_subjects, n_voxels, _ = self.features.shape
        if n_subjects < 2:
            found = f"{n_subjects} control"
            raise UserError(f"Whitening: {found}, expected at least 2. Add controls to the training split.")
        expected = self.mask.mask_hash
        if n_voxels != self.mask.size or getattr(self.features, "mask_hash", expected) != expected:
            raise UserError(
                f"Whitening: the features belong to another mask ({n_voxels} voxels), expected that of the model "
                f"({self.mask.size} voxels). Encode the subjects again."
            )

    def slabs(self) -> Iterator[SlabMoments]:
        """Yield the moments of all slabs, in the order of the voxels.

        Raises
        ------
        UserError
            Features that are not finite, or a voxel at which a subset has fewer than two controls.
        """
        n_subsets, k, d = self._sizes
        slabs = slabs_of(self.mask, n_subsets * (d * (d + 1) // 2 + d + 2 * k * d))
        raw = (self._raw(slab) for slab in slabs)
        residual = (self._residual(*parts) for parts in with_neighbours(raw))
        return (self._pooled(*parts) for parts in with_neighbours(residual))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Numbers of subsets (R), confounds (k) and features (d)."""
        return len(self.subsets), self.subsets.confounds[0].shape[1], self.features.shape[2]

    @cached_property
    def _confounds(self) -> np.ndarray:
        """Confounds in the order of the features, centred in each subset; see `moment_kernels.subset_moments`."""
        n_subsets, k, _ = self._sizes
        confounds = np.zeros((len(self.subsets.order), n_subsets, k), np.float32)
        for subset, values in enumerate(self.subsets.confounds):
            places, _ = self.subsets.place(subset)
            own = values[self.subsets.order[places]]
            confounds[places, subset] = own - _weighted_mean(own, self.subsets.ordered_weights[places])
        return confounds.reshape(len(confounds), n_subsets * k)

    @cached_property
    def _complete(self) -> tuple[np.ndarray, np.ndarray]:
        """Where no control is missing: means (R, k) and packed products (R, k(k+1)/2) of the confounds."""
        n_subsets, k, _ = self._sizes
        places = (self.subsets.place(subset)[0] for subset in range(n_subsets))
        means = [
            _weighted_mean(values[self.subsets.order[own]], self.subsets.ordered_weights[own])
            for values, own in zip(self.subsets.confounds, places, strict=True)
        ]
        roots = np.sqrt(self.subsets.ordered_weights)[:, None]
        wide = (roots * self._confounds).reshape(len(self._confounds), n_subsets, k).swapaxes(0, 1)
        rows, columns = np.tril_indices(k)
        return np.stack(means), (wide.swapaxes(1, 2) @ wide)[:, rows, columns]

    def _raw(self, slab: Slab) -> _Raw:
        """Sum over the controls."""
        n_subsets, k, d = self._sizes
        means, products = self._complete
        count, table = np.empty((n_subsets, slab.size)), np.zeros(slab.size, np.int64)
        mean = np.empty((n_subsets, slab.size, d), np.float32)
        within = np.empty((n_subsets, slab.size, d * (d + 1) // 2), np.float32)
        cross = np.empty((n_subsets, slab.size, k, d), np.float32)

        def add(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            block = read_block(self.features, slab.start + start, slab.start + stop).astype(np.float32, copy=False)
            incomplete = np.flatnonzero(np.isnan(block[:, :, 0]).any(axis=0)) if k else np.empty(0, np.int64)
            table[start + incomplete] = 1 + np.arange(len(incomplete))
            own_mean = np.zeros((1 + len(incomplete), *means.shape))
            own_products = np.zeros((1 + len(incomplete), *products.shape))
            moment_kernels.subset_moments(
                block,
                self.subsets.ordered_weights,
                self.subsets.segments,
                self.subsets.members,
                self._confounds,
                table[start:stop],
                start,
                count,
                mean,
                within,
                cross,
                own_mean,
                own_products,
            )
            return own_mean[1:] + means, own_products[1:]

        tables, begin = [(means[None], products[None])], 0
        threads = thread_count(self.jobs)
        for stop, own in in_order(add, slab.size, max(_BLOCK_NUMBERS // (len(self._confounds) * d), 1), threads):
            # The rows of a block follow those of the blocks before it.
            here = table[begin:stop]
            here[here > 0] += sum(len(part) for part, _ in tables) - 1
            tables.append(own)
            begin = stop
        _check(count, slab.start, 2.0 if self.subsets.weights is None else _SMALLEST_WEIGHT)
        all_means, all_products = (np.concatenate(parts) for parts in zip(*tables, strict=True))
        slopes = np.empty(cross.shape, np.float32)

        def solve(subset: int) -> None:
            inverse = np.empty((len(all_products), products.shape[1]))
            kernels.inverse_factors(np.ascontiguousarray(all_products[:, subset]), _RIDGE, inverse)
            moment_kernels.slopes(inverse, table, cross[subset], slopes[subset])

        self._for_each_subset(solve)
        return _Raw(slab, count, mean, within, cross, table, all_means, all_products, slopes)

    def _residual(self, own: _Raw, parts: Sequence[_Raw]) -> _Residual:
        """Average the slopes over neighbours, and regress the confounds out of the moments, which are overwritten."""
        slab, (n_subsets, n, k, d) = own.slab, own.cross.shape
        voxels = self.mask.locations[slab.low : slab.high]
        n_neighbours = sum_over_neighbours(np.ones((len(voxels), 1), np.float32), voxels, slab.inner)
        slopes = np.empty((n_subsets, k, n, d), np.float16)

        def regress(subset: int) -> None:
            alone = joined(slab, parts, lambda part: part.slopes[subset]).reshape(len(voxels), k * d)
            averaged = as_halves(sum_over_neighbours(alone, voxels, slab.inner) / n_neighbours).reshape(n, k, d)
            slopes[subset] = averaged.swapaxes(0, 1)
            # The moments are those of the residuals from the slopes as they are stored.
            moment_kernels.residual_moments(
                as_floats(averaged),
                own.cross[subset],
                np.ascontiguousarray(own.confound_mean[:, subset]),
                np.ascontiguousarray(own.products[:, subset]),
                own.table,
                own.mean[subset],
                own.within[subset],
            )

        if k:
            self._for_each_subset(regress)
        return _Residual(slab, slopes, own.count, own.mean, own.within)

    def _pooled(self, own: _Residual, parts: Sequence[_Residual]) -> SlabMoments:
        """Pool the moments over neighbours."""
        slab, covariance = own.slab, np.empty(own.within.shape, np.float32)
        voxels = self.mask.locations[slab.low : slab.high]

        def pool(subset: int) -> None:
            mean = joined(slab, parts, lambda part: part.mean[subset])
            within = joined(slab, parts, lambda part: part.within[subset])
            count = joined(slab, parts, lambda part: part.count[subset])
            # Of weights that sum to less than 2, half: they may belong to several controls.
            freedom = np.maximum(count - 1, count / 2).astype(np.float32)
            # Relative to a common centre, for precision where the mean is far from 0.
            local = mean - mean.mean(axis=0, dtype=np.float64).astype(np.float32)
            summed = np.empty((len(mean), within.shape[1] + mean.shape[1] + 1), np.float32)
            moment_kernels.about_centre(within, local, freedom, summed)
            summed = sum_over_neighbours(summed, voxels, slab.inner)
            moment_kernels.about_own_mean(summed, local[slab.inner], covariance[subset])

        self._for_each_subset(pool)
        return SlabMoments(slab, own.slopes, own.mean, covariance)

    def _for_each_subset(self, function: Callable[[int], None]) -> None:
        for _ in in_order(lambda subset, _: function(subset), len(self.subsets), 1, thread_count(self.jobs)):
            pass


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean (k,) of values (S, k)."""
    return (weights[:, None] * values).sum(axis=0) / weights.sum()


def _check(count: np.ndarray, start: int, least: float) -> None:
    """Check that the sums (R, n) of the weights of the controls at the voxels from `start` are at least `least`."""
    if (count < 0).any():
        raise UserError("Whitening: features are not finite, expected finite values. Encode the subjects again.")
    few = np.flatnonzero((count < least).any(axis=0))
    if len(few):
        raise UserError(
            f"Whitening: fewer than 2 controls have features at {named(start + few)}, expected at least 2. Remove "
            "these voxels from the mask."
        )
