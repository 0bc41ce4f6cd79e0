"""Fit of a scorer on all controls, and on all but one fold each for the scores of the others, in one pass.

A block of voxels of all controls is read once. There, for each fold and last for all controls, confounds are regressed
out, features are whitened, a part of the scorer is fitted, and the controls that it was not fitted on are scored. Only
what was fitted on all controls is kept, so that memory does not grow with the number of controls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...data_manifests.images.memory_map import release_pages
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.regression import ConfoundRegression
from ..confounds.residual_whitening import CrossFittedWhitening, ResidualWhitening
from ..features.feature_store import ReadFeatures
from ..features.subsets import Subsets, evenly_spaced
from ..features.whitening import Whitening
from ..ocsvm.blocks import in_order, read_block
from ..ocsvm.dual import thread_count

_BLOCK_NUMBERS = 2_000_000
"""Values that a thread reads at a time."""


class ScorerParts(Protocol):
    """Scorer that is fitted block by block, on whitened features."""

    @property
    def whitened(self) -> bool:
        """Whether the features are scaled."""
        ...

    @property
    def diagonal(self) -> bool:
        """Whether the features are scaled one by one, by their standard deviations."""
        ...

    @property
    def most_controls(self) -> int:
        """Largest number of controls that `fit` needs; of more, evenly spaced ones are taken."""
        ...

    def fit(self, features: np.ndarray, first: int, weights: np.ndarray | None) -> Any:
        """Fit the part of n voxels, of which `first` is the first, on features (S, n, d) with weights (S,)."""
        ...

    def score(self, part: Any, features: np.ndarray) -> np.ndarray:
        """Score features (S, n, d) with a part; (S, n) float32, NaN where the features are."""
        ...

    def add(self, part: Any) -> None:
        """Keep the part of the next voxels."""
        ...

    def scorer(self, whitening: Whitening | None) -> Any:
        """Return the scorer of all voxels."""
        ...


@dataclass(frozen=True, eq=False)
class OnePass:
    """Fit of a scorer on subsets of the controls.

    Attributes
    ----------
    mask : VoxelMask
    subsets : Subsets
    jobs : int or None
        Number of threads; one per core if None.
    scratch : Path or None
        Folder for the moments of the features; None: they are in memory.
    """

    mask: VoxelMask
    subsets: Subsets
    jobs: int | None = None
    scratch: Path | None = None

    def fit(
        self,
        features: ReadFeatures,
        parts: ScorerParts,
        scores: np.ndarray | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Any, ConfoundRegression | None]:
        """Fit the scorer.

        Parameters
        ----------
        features : callable
            Opens the features (n, P, d) of the n controls with the given indices.
        parts : ScorerParts
        scores : ndarray, (S, P), float32, optional
            Filled, if there are folds, with the scores of each control from the scorer without its fold; 0 where a
            control has no features. May be memory-mapped.
        progress : callable
            Called with (voxels done, total).

        Returns
        -------
        Scorer
            Fitted on all controls.
        ConfoundRegression or None
            For its features; None without confounds.

        Raises
        ------
        UserError
            See `CrossFittedWhitening.start`, and the errors of the scorer.
        """
        ordered = features(self.subsets.order)
        fit = CrossFittedWhitening.start(
            ordered,
            self.mask,
            self.subsets,
            whitened=parts.whitened,
            diagonal=parts.diagonal,
            jobs=self.jobs,
            scratch=self.scratch,
        )
        whole = fit.whole(len(self.subsets) - 1)
        n_subjects, n_voxels, d = ordered.shape
        for voxels, whitenings in fit.slabs():
            whole.fill(voxels, whitenings[-1])
            block = _Block(self.subsets, ordered, parts, whitenings, voxels.start, scores)
            size, step = voxels.stop - voxels.start, max(_BLOCK_NUMBERS // (n_subjects * d), 1)
            for stop, part in in_order(block.fit, size, step, thread_count(self.jobs)):
                parts.add(part)
                if scores is not None:
                    release_pages(scores)
                progress(voxels.start + stop, n_voxels)
        return parts.scorer(whole.whitening), whole.regression


@dataclass(frozen=True, eq=False)
class _Block:
    """Fit of the voxels of a slab, from the voxel `first`; for the other attributes see `OnePass.fit`."""

    subsets: Subsets
    features: Any
    parts: ScorerParts
    whitenings: list[ResidualWhitening]
    first: int
    scores: np.ndarray | None

    def fit(self, start: int, stop: int) -> Any:
        """Fit on all subsets of the controls, and score the controls that are not in one; return the last part."""
        first, part = self.first + start, None
        block = read_block(self.features, first, self.first + stop).astype(np.float32, copy=False)
        for subset, (whitening, confounds) in enumerate(zip(self.whitenings, self.subsets.confounds, strict=True)):
            inside, outside = self.subsets.place(subset)
            inside = inside[evenly_spaced(len(inside), self.parts.most_controls)]
            places = np.concatenate([inside, outside])
            controls = self.subsets.order[places]
            white = whitening.part(slice(start, stop)).apply(block, places, confounds[controls])
            weights = None if self.subsets.weights is None else self.subsets.ordered_weights[inside]
            part = self.parts.fit(white[: len(inside)], first, weights)
            if len(outside) and self.scores is not None:
                values = self.parts.score(part, white[len(inside) :])
                missing = np.isnan(block[outside, :, 0])
                self.scores[controls[len(inside) :], first : self.first + stop] = np.where(missing, 0, values)
        return part
