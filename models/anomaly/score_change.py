"""How far the scores of a scorer move when it is stored in less space, measured on random features."""

from dataclasses import dataclass

import numpy as np
import torch

from ..features.whitening import Whitening
from ..learned.scorer import LearnedScorer
from ..prototypes.scorer import Prototypes
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

    The features are drawn from the distribution of the controls that the scorer has stored: normal, with its mean (of
    prototypes, any of them) and covariance, and the effect of random confounds. No scan is needed.

    Returns
    -------
    ScoreChange or None
        None for one-class SVMs on latents that are not whitened, whose distribution is not stored.
    """
    random = np.random.default_rng(seed)
    if isinstance(scorer.scorer, Prototypes):
        features = _near_prototypes(scorer.scorer, random)
    elif (whitening := whitening_of(scorer)) is not None:
        features = _of_distribution(whitening, random)
    else:
        return None
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


def _of_distribution(whitening: Whitening, random: np.random.Generator) -> np.ndarray:
    white = random.normal(size=whitening.mean.shape).astype(np.float32)
    features = np.empty_like(white)
    for start in range(0, len(white), _VOXELS_AT_ONCE):
        block = slice(start, min(start + _VOXELS_AT_ONCE, len(white)))
        factor = whitening.factor(block.start, block.stop)
        features[block] = whitening.mean[block] + _coloured(factor, white[block])
    return features


def _near_prototypes(scorer: Prototypes, random: np.random.Generator) -> np.ndarray:
    number, (_, n_prototypes, d) = scorer.blocks.number, scorer.prototypes.shape
    chosen = scorer.prototypes[number, random.integers(n_prototypes, size=len(number))]
    factors = scorer.factors.copy()
    factors[~factors.any(axis=(1, 2))] = np.eye(d)  # blocks without patches
    white = random.normal(size=chosen.shape).astype(np.float32)
    for start in range(0, len(white), _VOXELS_AT_ONCE):
        block = slice(start, start + _VOXELS_AT_ONCE)
        chosen[block] += _coloured(factors[number[block]], white[block])
    return chosen


def _coloured(factors: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return the vectors (n, d) that the whitening factors (n, d, d) make `white`."""
    solved = torch.linalg.solve_triangular(torch.from_numpy(factors), torch.from_numpy(white[:, :, None]), upper=False)
    return solved[:, :, 0].numpy()
