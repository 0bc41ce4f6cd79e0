"""How far the scores of a scorer move when it is stored in less space, measured on random features."""

from dataclasses import dataclass

import numpy as np
import torch

from ..features.whitening import Whitening
from ..learned.scorer import LearnedScorer
from .calibrated_scorer import CalibratedScorer
from .scorers import Mahalanobis, OneClassSvms

_VOXELS_AT_ONCE = 16_384


@dataclass(frozen=True)
class ScoreChange:
    """Change of the scores, as a share of their standard deviation in controls.

    Attributes
    ----------
    typical : float
        Root mean square.
    large : float
        All but one in a thousand are smaller.
    """

    typical: float
    large: float


def score_change(scorer: CalibratedScorer, other: CalibratedScorer, *, seed: int = 0) -> ScoreChange | None:
    """Compare the scores of a scorer with those of its smaller version, at all voxels.

    The features are drawn from the distribution of the controls that the scorer has stored: normal, with its mean and
    covariance, and the effect of random confounds. No scan is needed.

    Returns
    -------
    ScoreChange or None
        None for one-class SVMs on latents that are not whitened, whose distribution is not stored.
    """
    whitening = whitening_of(scorer)
    if whitening is None:
        return None
    random = np.random.default_rng(seed)
    white = random.normal(size=whitening.mean.shape).astype(np.float32)
    features = np.empty_like(white)
    for start in range(0, len(white), _VOXELS_AT_ONCE):
        block = slice(start, min(start + _VOXELS_AT_ONCE, len(white)))
        factor = torch.from_numpy(whitening.factor(block.start, block.stop))
        drawn = torch.linalg.solve_triangular(factor, torch.from_numpy(white[block, :, None]), upper=False)
        features[block] = whitening.mean[block] + drawn[:, :, 0].numpy()
    confounds = random.normal(size=0 if scorer.regression is None else len(scorer.regression.slopes))
    if scorer.regression is not None:
        features -= scorer.regression.residualise(np.zeros_like(features), confounds)
    everywhere = np.ones(len(features), bool)
    before, after = (
        each.scorer.score(
            features if each.regression is None else each.regression.residualise(features, confounds),
            inside=everywhere,
        ).astype(np.float64)
        for each in (scorer, other)
    )
    changes = np.abs(after - before) / max(before.std(), np.finfo(float).tiny)
    return ScoreChange(float(np.sqrt(np.mean(changes**2))), float(np.percentile(changes, 99.9)))


def whitening_of(scorer: CalibratedScorer) -> Whitening | None:
    """Return the whitening of a scorer's features; None if they are not whitened."""
    own = scorer.scorer
    if isinstance(own, LearnedScorer):
        return own.context.norm.whitening
    return own.whitening if isinstance(own, (Mahalanobis, OneClassSvms)) else None
