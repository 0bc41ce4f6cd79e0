"""From a trained network to anomaly scores, higher = more anomalous. All are fitted on the normal training digits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors

from benchmarks.mnist_c.objectives import Guidance, Sphere
from benchmarks.mnist_c.training import Recipe, Trained, encode, reconstruction_error

NU = 0.1
"""Of every one-class SVM: of the guidance, of the read-outs, and of the raw pixels."""
GAMMA, FIXED_GAMMA = "scale", 0.01


@dataclass(frozen=True, eq=False)
class NetworkScorer:
    """All read-outs of one training.

    Attributes
    ----------
    trained : Trained
    read_outs : tuple of str
        "reconstruction": mean squared error. "ocsvm": one one-class SVM on the codes of all training digits, with the
        gamma of the guidance, or by scale. "ocsvm-fixed": the same with the fixed gamma. "last-10": mean of the
        one-class SVMs of the last ten steps. "distance": squared distance to the centre.
    mean, scale : ndarray, (d,)
        Codes are standardised with these before a one-class SVM; 0 and 1 where the training does not either.
    detectors : mapping of str to DetectorField
        Of the read-outs that have one-class SVMs.
    """

    trained: Trained
    read_outs: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    detectors: Mapping[str, DetectorField]

    @classmethod
    def fit(cls, trained: Trained, recipe: Recipe, read_outs: tuple[str, ...], images: torch.Tensor) -> "NetworkScorer":
        """Fit the read-outs on normal digits (N, 1, 28, 28)."""
        codes = encode(trained.model, images).numpy().astype(np.float64)
        guidance = next((term for term in recipe.terms if isinstance(term, Guidance)), None)
        gamma = guidance.gamma if guidance else GAMMA
        mean, scale = np.zeros(codes.shape[1]), np.ones(codes.shape[1])
        if guidance and guidance.standardised:
            mean, scale = codes.mean(axis=0), codes.std(axis=0) + 1e-6
        # Each (subjects, "locations", d): all digits at one, or those of a step at one a step.
        everyone = codes[:, None]
        fitted_on = {"ocsvm": (everyone, gamma), "ocsvm-fixed": (everyone, FIXED_GAMMA)}
        if trained.supports is not None:
            fitted_on["last-10"] = trained.supports.numpy().astype(np.float64).transpose(1, 0, 2), gamma
        detectors = {
            name: fit_detectors((points - mean) / scale, nu=NU, gamma=width, jobs=1)
            for name, (points, width) in fitted_on.items()
            if name in read_outs
        }
        return cls(trained, read_outs, mean, scale, detectors)

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
                scores[name] = -_mean_decision(self.detectors[name], standard)
        return scores


def _mean_decision(detectors: DetectorField, codes: np.ndarray) -> np.ndarray:
    """Mean of the decision functions of all detectors at every code, (N,)."""
    everywhere = np.broadcast_to(codes[:, None], (len(codes), len(detectors), codes.shape[1]))
    return np.asarray(detectors.decision_function(everywhere, jobs=1)).mean(axis=1)
