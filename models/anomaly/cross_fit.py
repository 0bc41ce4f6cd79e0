"""Cross-validation of the scorers: a fit on all controls, null scores from fits without them, and calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data_manifests.images.memory_map import release_pages, rows_of, temporary_array
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..confounds.regression import ConfoundRegression
from ..edits.edited_controls import EditedControls
from ..features.extractors import Features
from ..features.feature_store import ReadFeatures
from ..features.packed_masks import Masks
from ..features.source import ScorerSpec
from ..features.subsets import Subsets
from ..labels.fusion import Fusion
from ..learned.fit import LearnedFit
from ..learned.scorer import LearnedScorer
from ..prototypes.scorer import Prototypes, Samples
from ..settings import ModelSettings
from .ages import AgeCalibration
from .calibrated_scorer import CalibratedScorer
from .calibration import Calibration, calibrate, own_fold_weight
from .ensemble import combined_by_member
from .one_pass import OnePass, ScorerParts
from .scorers import DistanceParts, Scorer, SvmParts
from .smoothing import Smoothing, smoothed
from .surroundings import Surroundings


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validation of scorers on the features of controls, which may be on disk or in memory.

    Attributes
    ----------
    mask : VoxelMask
    inside : (S, P) bool
        Brain mask of each control, without voxels near a truncated field of view.
    subsets : Subsets
        With weights, moments, one-class SVMs and calibrations are weighted; prototypes and the learned scorer are not.
    settings : ModelSettings
    jobs : int or None
        Number of threads; one per core if None.
    step : callable
        Called after each fit.
    device : str or torch.device
        Device on which networks are trained, and one-class SVMs and distances fitted.
    edited_controls : EditedControls or None
        What the learned scorer learns from; None if there is no such scorer.
    scratch : Path or None
        Folder for the scores of all controls, of which one is in memory at a time, and for the moments of their
        features; None: all are in memory.
    participants : ndarray of int, (S,), or None
        Whose scan each control is; None: each is of another participant.
    seed : int
        Of the samples of patches.
    """

    mask: VoxelMask
    inside: Masks
    subsets: Subsets
    settings: ModelSettings
    jobs: int | None = None
    step: Callable[[], None] = lambda: None
    device: torch.device | str = "cpu"
    edited_controls: EditedControls | None = None
    scratch: Path | None = None
    participants: np.ndarray | None = None
    seed: int = 0

    def calibrated_scorer(
        self, name: str, spec: ScorerSpec, extractor: Features, features: ReadFeatures
    ) -> tuple[CalibratedScorer, np.ndarray]:
        """Fit and calibrate one scorer; also return -log10 p of its null, (S, P)."""
        if spec.scorer == "learned":
            scorer, regression, null = self.learned(features)
        elif spec.scorer == "prototypes":
            (scorer, null), regression = self.prototypes(features), None
        else:
            scorer, regression, null = self.one_pass(spec, features)
        calibration = self.calibrate(null)
        sigma_mm, smoothing = self.settings.ensemble.smoothing_mm, None
        if sigma_mm > 0 and spec.is_smoothed:
            for row, brain in zip(rows_of(null), self.inside, strict=True):
                row[:] = smoothed(row, brain, self.mask, sigma_mm)
            smoothing = Smoothing(self.mask, sigma_mm, self.calibrate(null))
        weight = self.settings.ensemble.weight_of(spec.scorer)
        parts = scorer, calibration, smoothing, spec.member, regression, weight
        return CalibratedScorer(name, extractor, *parts), null

    def one_pass(
        self, spec: ScorerSpec, features: ReadFeatures
    ) -> tuple[Scorer, ConfoundRegression | None, np.ndarray]:
        """Fit a scorer; also return the regression for its features, and its null scores (S, P).

        The null scores of a control are those of a scorer fitted without its fold; 0 where it has no features.
        """
        if spec.scorer == "ocsvm":
            size = features(self.subsets.order[:1]).shape[2]
            parts: ScorerParts = SvmParts(self.settings.detector, size)
        else:
            parts = DistanceParts(spec.direction)
        scores = self._new_null()
        steps = _Steps(self.step, len(self.subsets))
        device = None if torch.device(self.device).type == "cpu" else self.device
        one_pass = OnePass(self.mask, self.subsets, self.jobs, self.scratch, device)
        scorer, regression = one_pass.fit(features, parts, scores, steps.reached)
        return scorer, regression, scores

    def learned(self, features: ReadFeatures) -> tuple[LearnedScorer, ConfoundRegression | None, np.ndarray]:
        """Train the learned scorer; also return the regression for its features, and its null scores (S, P)."""
        if self.edited_controls is None:
            raise ValueError("the learned scorer needs edited_controls")
        folds, confounds = self.subsets.folds, self.subsets.confounds
        fit = LearnedFit.start(self.mask, features, self.edited_controls, self.inside, folds, confounds, self.scratch)
        settings = self.settings.learned
        samples = fit.samples(settings.copies, self.jobs, self.step)
        networks = fit.networks(samples, settings.steps, self.device, self.jobs, self.step)
        return fit.scorer(networks), fit.references[-1].regression, fit.null(networks, self._new_null(), self.jobs)

    def prototypes(self, features: ReadFeatures) -> tuple[Prototypes, np.ndarray]:
        """Fit prototypes; also return their null scores (S, P)."""
        everyone = self.subsets.order
        participants = np.arange(len(everyone)) if self.participants is None else self.participants
        folds = self.subsets.folds
        samples = Samples.draw(features, participants, folds, self.mask, seed=self.seed, jobs=self.jobs)
        null = self._new_null()
        for fold in folds:
            others = samples.fit(np.setdiff1d(everyone, fold), jobs=self.jobs)
            for control in fold:
                own = features([control])[:, :][0]
                null[control] = others.score(own, inside=self.inside[control], jobs=self.jobs)
                release_pages(null)
            self.step()
        scorer = samples.fit(everyone, jobs=self.jobs)
        self.step()
        return scorer, null

    def combine(
        self,
        scorers: Sequence[CalibratedScorer],
        nulls: Sequence[ReadFeatures],
        *,
        fusion: Fusion | None = None,
        latents: ReadFeatures | None = None,
    ) -> tuple[Calibration, np.ndarray]:
        """Calibrate the combination of scorers from their nulls (S, P, 1); also return -log10 p of the null, (S, P).

        `fusion` and the `latents` (S, P, L) are as for `combined_by_member`.
        """
        values, p_norm = self._new_null(), self.settings.ensemble.p_norm
        for index, (row, brain) in enumerate(zip(rows_of(values), self.inside, strict=True)):
            neg_log10_ps = [null([index])[:, :][0, :, 0] for null in nulls]
            own = latents([index])[:, :][0] if latents is not None else None
            by_member = combined_by_member(neg_log10_ps, scorers, brain, p_norm, fusion=fusion, latents=own)
            row[:] = by_member.mean(axis=0)
        return self.calibrate(values), values

    def compare_with_surroundings(self, null: np.ndarray) -> Surroundings:
        """Compare the -log10 p of the null (S, P) with their surroundings; they are overwritten with the result."""
        sigma_mm = self.settings.ensemble.surroundings_mm
        return Surroundings.fit(null, self.inside, self.mask, sigma_mm, self.calibrate, self.subsets.weights)

    def match_ages(self, null: np.ndarray, ages: Sequence[float | None]) -> AgeCalibration | None:
        """Calibrate the -log10 p of the null (S, P) to the ages of the controls; they are overwritten with the result.

        None, and nothing is changed, if too few ages are known.
        """
        years = self.settings.ensemble.age_years
        return AgeCalibration.fit(null, self.inside, self.subsets.folds, self.mask, ages, years, self._new_null)

    def calibrate(self, null: np.ndarray) -> Calibration:
        """Fit a calibration to null scores (S, P), which are overwritten with -log10 p."""
        weights = self.subsets.weights
        own = own_fold_weight(weights)
        folds = self.subsets.folds
        return calibrate(null, self.inside, folds, self.mask, weights=weights, own_fold_weight=own, out=null)[0]

    def _new_null(self) -> np.ndarray:
        """Return an array for null scores, (S, P) float32."""
        if self.scratch is None:
            return np.empty(self.inside.shape, np.float32)
        return temporary_array(self.scratch, np.float32, self.inside.shape)


class _Steps:
    """Converts the progress within a fit to steps.

    Parameters
    ----------
    step : callable
        Called after each step.
    total : int
        Number of steps of the fit.
    """

    def __init__(self, step: Callable[[], None], total: int):
        self._step, self._total, self._done = step, total, 0

    def reached(self, done: int, total: int) -> None:
        """Report a share of the fit as done."""
        while (self._done + 1) * total <= done * self._total:
            self._done += 1
            self._step()
