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
import torch

from ...data_manifests.errors import MachineError
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
_ON_DEVICE = 16_000_000
"""Values that a device gets at a time; where it has no memory for them, half as many."""


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

    def fit(self, features: np.ndarray | torch.Tensor, first: int, weights: np.ndarray | None) -> Any:
        """Fit the part of n voxels, of which `first` is the first, on features (S, n, d) with weights (S,)."""
        ...

    def score(self, part: Any, features: np.ndarray | torch.Tensor) -> np.ndarray:
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
    device : str, torch.device or None
        Where torch whitens the blocks, fits and scores; None: compiled code does, on the CPU.
    """

    mask: VoxelMask
    subsets: Subsets
    jobs: int | None = None
    scratch: Path | None = None
    device: torch.device | str | None = None

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
        MachineError
            The device is gone, or has no memory for a single voxel.
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
            block = _Block(self.subsets, ordered, parts, whitenings, voxels.start, scores, self.device)
            numbers, threads = (_BLOCK_NUMBERS, thread_count(self.jobs)) if self.device is None else (_ON_DEVICE, 1)
            size, step = voxels.stop - voxels.start, max(numbers // (n_subjects * d), 1)
            for stop, fitted in in_order(block.fit, size, step, threads):
                for part in fitted:
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
    device: torch.device | str | None

    def fit(self, start: int, stop: int) -> list[Any]:
        """Fit on all subsets of the controls, and score the controls that are not in one; return the last parts.

        It is one part, or more where the device had no memory for the whole block.
        """
        try:
            return [self._fit(start, stop)]
        except torch.OutOfMemoryError as error:
            if stop - start == 1:
                raise MachineError(
                    f"{self.device}: has no memory left for a single voxel, expected some megabytes. Wait until other "
                    "programs have left it, or use --device cpu."
                ) from error
        except RuntimeError as error:
            if self.device is None or "CUDA" not in str(error):
                raise
            raise MachineError(
                f"{self.device}: is not usable any more ({str(error).splitlines()[0]}), expected it to last until the "
                "end. Run the same command again, or use --device cpu."
            ) from error
        # Out of the handler, which would keep the tensors of the failed try.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = (start + stop) // 2
        return [*self.fit(start, middle), *self.fit(middle, stop)]

    def _fit(self, start: int, stop: int) -> Any:
        first, part = self.first + start, None
        block = read_block(self.features, first, self.first + stop).astype(np.float32, copy=False)
        features = block if self.device is None else torch.from_numpy(block).to(self.device)
        for subset, (whitening, confounds) in enumerate(zip(self.whitenings, self.subsets.confounds, strict=True)):
            inside, outside = self.subsets.place(subset)
            inside = inside[~self.subsets.ordered_copies[inside]]
            inside = inside[evenly_spaced(len(inside), self.parts.most_controls)]
            places = np.concatenate([inside, outside])
            controls = self.subsets.order[places]
            white = whitening.part(slice(start, stop)).apply(features, places, confounds[controls])
            weights = None if self.subsets.weights is None else self.subsets.ordered_weights[inside]
            part = self.parts.fit(white[: len(inside)], first, weights)
            if len(outside) and self.scores is not None:
                values = self.parts.score(part, white[len(inside) :])
                missing = np.isnan(block[outside, :, 0])
                self.scores[controls[len(inside) :], first : self.first + stop] = np.where(missing, 0, values)
        return part
