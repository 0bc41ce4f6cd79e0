"""Confound regression and whitening of features, fitted on all subsets of a cross-validation in one go.

The features of the controls are read once. Their moments are kept on disk until the covariance of the whole brain, by
which those of the voxels are regularised, is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.feature_store import LatentStore
from ..features.kept_slabs import KeptSlabs
from ..features.moments import SlabMoments, SubsetMoments
from ..features.subsets import Subsets
from ..features.whitening import SHRINKAGE, BrainCovariance, Whitening, brain_covariances
from .regression import ConfoundRegression


@dataclass(frozen=True, eq=False)
class ResidualWhitening:
    """Confound regression, then whitening, of the features of n voxels.

    Attributes
    ----------
    regression : ConfoundRegression or None
        None without confounds.
    whitening : Whitening or None
        None: the residuals are not scaled.
    """

    regression: ConfoundRegression | None
    whitening: Whitening | None

    def apply(self, features, subjects: np.ndarray, confounds: np.ndarray):
        """Transform the features of some subjects.

        Parameters
        ----------
        features : ndarray or tensor, (all subjects, n, d), float32
        subjects : ndarray of int, (S,)
        confounds : ndarray, (S, k)

        Returns
        -------
        ndarray or tensor, (S, n, d), float32
            A tensor on the same device for a tensor.
        """
        if isinstance(features, torch.Tensor):
            return self._apply_to_tensor(features[torch.from_numpy(subjects)], confounds)
        if self.whitening is None:
            own = features[subjects]
            return own if self.regression is None else self.regression.residualise_block(own, confounds)
        slopes = np.empty((0, *features.shape[1:]), np.float16) if self.regression is None else self.regression.slopes
        return self.whitening.whiten_residuals(features, subjects, slopes, confounds)

    def _apply_to_tensor(self, own: torch.Tensor, confounds: np.ndarray) -> torch.Tensor:
        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(own.device)

        if self.regression is not None:
            own = own - torch.einsum("sk,knd->snd", on_device(confounds), on_device(self.regression.slopes))
        if self.whitening is None:
            return own
        centred, factor = own - on_device(self.whitening.mean), on_device(self.whitening.factor())
        return torch.einsum("nij,snj->sni", factor, centred).contiguous()

    def part(self, voxels: slice) -> "ResidualWhitening":
        """Return the same for some of the voxels, without a copy."""
        regression, whitening = self.regression, self.whitening
        return ResidualWhitening(
            None if regression is None else ConfoundRegression(regression.slopes[:, voxels]),
            None if whitening is None else whitening.part(voxels),
        )

    def fill(self, voxels: slice, part: "ResidualWhitening") -> None:
        """Overwrite some of the voxels."""
        if self.regression is not None and part.regression is not None:
            self.regression.slopes[:, voxels] = part.regression.slopes
        if self.whitening is not None and part.whitening is not None:
            self.whitening.mean[voxels] = part.whitening.mean
            self.whitening.packed[voxels] = part.whitening.packed


@dataclass(frozen=True, eq=False)
class CrossFittedWhitening:
    """Residual whitening of each of R subsets, computed slab by slab.

    Attributes
    ----------
    moments : SubsetMoments
    kept : KeptSlabs or None
        Their slabs.
    brains : list of BrainCovariance or None
        Of each subset; both are None without whitening.
    """

    moments: SubsetMoments
    kept: KeptSlabs | None
    brains: list[BrainCovariance] | None

    @classmethod
    def start(
        cls,
        features: LatentStore | np.ndarray,
        mask: VoxelMask,
        subsets: Subsets,
        *,
        whitened: bool = True,
        diagonal: bool = False,
        jobs: int | None = None,
        scratch: Path | None = None,
    ) -> "CrossFittedWhitening":
        """Compute the covariance of the whole brain for each subset.

        Parameters
        ----------
        features : (S, P, d)
            Features of the controls in the order of `subsets`.
        mask : VoxelMask
        subsets : Subsets
        whitened : bool
            False: the confounds are regressed out, and nothing else.
        diagonal : bool
            See `BrainCovariance`.
        jobs : int, optional
            Number of threads; one per core by default.
        scratch : Path, optional
            Folder for the moments, which are in memory by default.

        Raises
        ------
        UserError
            See `SubsetMoments` and `brain_covariances`.
        """
        moments = SubsetMoments(features, mask, subsets, jobs)
        if not whitened:
            return cls(moments, None, None)
        kept = KeptSlabs(scratch)
        return cls(moments, kept, brain_covariances(kept.keep(moments.slabs()), shrinkage=SHRINKAGE, diagonal=diagonal))

    def slabs(self) -> Iterator[tuple[slice, list[ResidualWhitening]]]:
        """Yield the voxels of each slab, and the residual whitening of each subset there."""
        for slab in self.moments.slabs() if self.kept is None else self.kept:
            yield slab.voxels, [self._of_subset(slab, subset) for subset in range(len(self.moments.subsets))]

    def whole(self, subset: int) -> ResidualWhitening:
        """Return the residual whitening of the whole brain for a subset, to be filled slab by slab."""
        _, n_voxels, d = self.moments.features.shape
        k = self.moments.subsets.confounds[0].shape[1]
        regression = ConfoundRegression(np.empty((k, n_voxels, d), np.float16)) if k else None
        if self.brains is None:
            return ResidualWhitening(regression, None)
        unit = self.brains[subset].unit
        return ResidualWhitening(regression, Whitening.empty(n_voxels, d, unit, self.moments.mask.mask_hash))

    def _of_subset(self, slab: SlabMoments, subset: int) -> ResidualWhitening:
        regression = ConfoundRegression(slab.slopes[subset]) if slab.slopes.shape[1] else None
        if self.brains is None:
            return ResidualWhitening(regression, None)
        brain = self.brains[subset]
        packed = brain.factors(slab.covariance[subset])
        whitening = Whitening(slab.mean[subset], packed, brain.unit, self.moments.mask.mask_hash)
        return ResidualWhitening(regression, whitening)


def fit_residual_whitenings(
    features: LatentStore | np.ndarray,
    mask: VoxelMask,
    subsets: Subsets,
    *,
    jobs: int | None = None,
    scratch: Path | None = None,
) -> list[tuple[Whitening, ConfoundRegression | None]]:
    """Fit the whitening of the whole brain, and the regression before it, on each subset.

    Raises
    ------
    UserError
        See `CrossFittedWhitening.start`.
    """
    fit = CrossFittedWhitening.start(features, mask, subsets, jobs=jobs, scratch=scratch)
    fitted = [fit.whole(subset) for subset in range(len(subsets))]
    for voxels, parts in fit.slabs():
        for own, part in zip(fitted, parts, strict=True):
            own.fill(voxels, part)
    return [(own.whitening, own.regression) for own in fitted if own.whitening is not None]
