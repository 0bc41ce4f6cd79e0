"""From a trained network to anomaly scores, higher = more anomalous. All are fitted on the normal training digits."""

from dataclasses import dataclass

import numpy as np
import torch

from ...models.detector import DetectorField, fit_detectors
from .objectives import Guidance, Sphere
from .training import Recipe, Trained, encode, reconstruction_error

NU = 0.1
"""Of every one-class SVM: of the guidance, of the read-outs, and of the raw pixels."""
GAMMA = "scale"


@dataclass(frozen=True, eq=False)
class NetworkScorer:
    """All read-outs of one training.

    Attributes
    ----------
    trained : Trained
    read_outs : tuple of str
        "reconstruction": mean squared error. "ocsvm": one one-class SVM on the codes of all training digits.
        "last-10": mean of the one-class SVMs of the last ten steps. "distance": squared distance to the centre.
    mean, scale : ndarray, (d,)
        Codes are standardised with these before a one-class SVM; 0 and 1 where the training does not either.
    final : DetectorField or None
    last : DetectorField or None
    """

    trained: Trained
    read_outs: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    final: DetectorField | None
    last: DetectorField | None

    @classmethod
    def fit(cls, trained: Trained, recipe: Recipe, read_outs: tuple[str, ...], images: torch.Tensor) -> "NetworkScorer":
        """Fit the read-outs on normal digits (N, 1, 28, 28)."""
        codes = encode(trained.model, images).numpy().astype(np.float64)
        guidance = next((term for term in recipe.terms if isinstance(term, Guidance)), None)
        gamma = guidance.gamma if guidance else GAMMA
        mean, scale = np.zeros(codes.shape[1]), np.ones(codes.shape[1])
        if guidance and guidance.standardised:
            mean, scale = codes.mean(axis=0), codes.std(axis=0) + 1e-6
        final = last = None
        if "ocsvm" in read_outs:
            final = fit_detectors(((codes - mean) / scale)[:, None], nu=NU, gamma=gamma, jobs=1)
        if "last-10" in read_outs:
            assert trained.supports is not None
            # One "location" a step: (m, M, d).
            supports = trained.supports.numpy().astype(np.float64).transpose(1, 0, 2)
            last = fit_detectors((supports - mean) / scale, nu=NU, gamma=gamma, jobs=1)
        return cls(trained, read_outs, mean, scale, final, last)

    def score(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Scores (N,) of images (N, 1, 28, 28), by read-out."""
        codes = encode(self.trained.model, images)
        standard = (codes.numpy().astype(np.float64) - self.mean) / self.scale
        scores = {}
        for name in self.read_outs:
            if name == "reconstruction":
                scores[name] = reconstruction_error(self.trained.model, images, codes).numpy()
            elif name == "distance":
                sphere = next(term for term in self.trained.terms if isinstance(term, Sphere))
                scores[name] = sphere.distance(codes).numpy()
            else:
                scores[name] = -_mean_decision(self.final if name == "ocsvm" else self.last, standard)
        return scores


def _mean_decision(detectors: DetectorField | None, codes: np.ndarray) -> np.ndarray:
    """Mean of the decision functions of all detectors at every code, (N,)."""
    assert detectors is not None
    everywhere = np.broadcast_to(codes[:, None], (len(codes), len(detectors), codes.shape[1]))
    return np.asarray(detectors.decision_function(everywhere, jobs=1)).mean(axis=1)
