"""Training of the learned scorer, cross-validated: each control is scored by a network that has not seen it.

The deviations of a control are those from the mean and covariance of the other folds, in training as in the null, since
the deviations of controls that a mean was fitted on are too small.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data_manifests.images.memory_map import release_pages
from ...data_manifests.threads import one_torch_thread
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.regression import ConfoundRegression
from ..confounds.residual_whitening import fit_residual_whitenings
from ..edits.edited_controls import EditedControls, Unedited
from ..features.feature_store import ReadFeatures
from ..features.packed_masks import Masks
from ..features.subsets import Subsets
from .chosen_voxels import chosen_voxels
from .context import Context, Smoother
from .network import EditClassifier, Samples, train_classifier
from .norm import Norm
from .scorer import LearnedScorer, score_of


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean and covariance of some of the controls, confounds regressed out.

    Attributes
    ----------
    norm : Norm
    regression : ConfoundRegression or None
    """

    norm: Norm
    regression: ConfoundRegression | None

    def without_confounds(self, features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
        """Features (P, C) of one subject without the effect of its confounds (k,)."""
        return features if self.regression is None else self.regression.residualise(features, confounds)


@dataclass(frozen=True, eq=False)
class LearnedFit:
    """Cross-validation of the learned scorer.

    Attributes
    ----------
    mask : VoxelMask
    features : callable
        Opens the channels (n, P, C) of the n controls with the given indices.
    controls : EditedControls
    inside : (S, P) bool
        Brain mask of each control.
    folds : sequence of ndarray of int
    confounds : sequence of ndarray, (S, k)
        Confounds of all controls, as learnt without each fold, and last on all controls.
    references : sequence of Reference
        Fitted without each fold, and last on all controls.
    context : Context
        Of the reference of all controls.
    """

    mask: VoxelMask
    features: ReadFeatures
    controls: EditedControls
    inside: Masks
    folds: Sequence[np.ndarray]
    confounds: Sequence[np.ndarray]
    references: Sequence[Reference]
    context: Context

    @classmethod
    def start(
        cls,
        mask: VoxelMask,
        features: ReadFeatures,
        controls: EditedControls,
        inside: Masks,
        folds: Sequence[np.ndarray],
        confounds: Sequence[np.ndarray],
        scratch: Path | None = None,
    ) -> "LearnedFit":
        """Fit the references, with a folder for temporary files; the other parameters are attributes of the class."""
        subsets = Subsets(folds, confounds)
        fitted = fit_residual_whitenings(features(subsets.order), mask, subsets, scratch=scratch)
        references = [Reference(Norm(whitening), regression) for whitening, regression in fitted]
        context = Context(mask, references[-1].norm, len(controls.channels.modalities))
        return cls(mask, features, controls, inside, folds, confounds, references, context)

    def fold_of(self, index: int) -> int:
        """Fold to which a control belongs."""
        return next(number for number, fold in enumerate(self.folds) if index in fold)

    def samples_of(self, index: int, copies: int) -> Samples:
        """Draw voxels of edited copies of a control."""
        control, smoother = self.controls.unedited(index), self.context.smoother(self.inside[index])
        return Samples.joined([self._sample(control, copy, smoother) for copy in range(copies)])

    def _sample(self, control: Unedited, copy: int, smoother: Smoother) -> Samples:
        index, fold = control.index, self.fold_of(control.index)
        channels, drawn = self.controls.draw(control, copy)
        features = self.mask.transform(channels).T.astype(np.float32)
        features = self.references[fold].without_confounds(features, self.confounds[fold][index])
        deviations = self.references[fold].norm.deviations(features)
        random = np.random.default_rng([self.controls.seed, index, copy, 1])
        at, families = chosen_voxels(drawn, self.mask.transform(drawn.numbers), self.inside[index], deviations, random)
        inputs = self.context.compute(features, deviations, self.inside[index], at=at, smoother=smoother)
        return Samples(np.ascontiguousarray(inputs), families)

    def samples(self, copies: int, jobs: int | None, step: Callable[[], None]) -> list[Samples]:
        """Draw the voxels of all controls, one element per control."""
        drawn = []
        with ThreadPoolExecutor(jobs) as pool:
            for samples in pool.map(lambda index: self.samples_of(index, copies), range(len(self.inside))):
                drawn.append(samples)
                for _ in range(copies):
                    step()
        return drawn

    def inputs(self, index: int) -> np.ndarray:
        """Compute the inputs (P, d) of an unedited control, from the reference without its fold."""
        fold = self.fold_of(index)
        features = self.features([index])[:, :][0]
        features = self.references[fold].without_confounds(features, self.confounds[fold][index])
        return self.context.compute(features, self.references[fold].norm.deviations(features), self.inside[index])

    def networks(
        self,
        samples: Sequence[Samples],
        steps: int,
        device: torch.device | str,
        jobs: int | None,
        step: Callable[[], None],
    ) -> list[EditClassifier]:
        """Train one network on the samples of the other folds, for each fold."""

        def trained(number: int) -> EditClassifier:
            others = np.setdiff1d(np.arange(len(samples)), self.folds[number])
            own = [samples[index] for index in others]
            return train_classifier(own, seed=self.controls.seed + number, steps=steps, device=device)

        networks = []
        # The networks are too small for several threads each.
        with one_torch_thread(), ThreadPoolExecutor(jobs) as pool:
            for network in pool.map(trained, range(len(self.folds))):
                networks.append(network)
                step()
        return networks

    def null(self, networks: Sequence[EditClassifier], out: np.ndarray, jobs: int | None) -> np.ndarray:
        """Fill `out` (S, P) with the scores of each control from the network and the reference without its fold.

        They are 0 outside its brain.
        """

        def score(index: int) -> None:
            logits = networks[self.fold_of(index)].logits(self.inputs(index))
            out[index] = np.where(self.inside[index], score_of(logits), 0)
            release_pages(out)

        with one_torch_thread(), ThreadPoolExecutor(jobs) as pool:
            list(pool.map(score, range(len(self.inside))))
        return out

    def scorer(self, networks: Sequence[EditClassifier]) -> LearnedScorer:
        """Scorer for unseen subjects."""
        return LearnedScorer(self.context, tuple(networks))
