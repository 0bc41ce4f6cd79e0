"""Read-outs: anomaly scores of a trained network, fitted on normal training digits; higher = more anomalous."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors

from .objectives import Guidance, Sphere
from .training import Recipe, Trained, encode, reconstruction_error

NU = 0.1
"""nu of all one-class SVMs: for guidance, for read-outs and on raw pixels."""
GAMMA, FIXED_GAMMA = "scale", 0.01


@dataclass(frozen=True, eq=False)
class NetworkScorer:
    """Read-outs of one training.

    Attributes
    ----------
    trained : Trained
    read_outs : tuple of str
        "reconstruction": mean squared error. "ocsvm": one-class SVM on the latents of all training digits, with the
        gamma of the guidance or gamma "scale". "ocsvm-fixed": the same with the fixed gamma. "last-10": mean of the
        one-class SVMs of the last ten steps. "distance": squared distance to the centre.
    mean, scale : ndarray, (d,)
        Standardisation of the latents before a one-class SVM; 0 and 1 if training does not standardise.
    detectors : mapping of str to DetectorField
        One-class SVMs, by read-out.
    """

    trained: Trained
    read_outs: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    detectors: Mapping[str, DetectorField]

    @classmethod
    def fit(cls, trained: Trained, recipe: Recipe, read_outs: tuple[str, ...], images: torch.Tensor) -> "NetworkScorer":
        """Fit the read-outs on normal digits (N, 1, 28, 28)."""
        latents = encode(trained.model, images).numpy().astype(np.float64)
        guidance = next((term for term in recipe.terms if isinstance(term, Guidance)), None)
        gamma = guidance.gamma if guidance else GAMMA
        mean, scale = np.zeros(latents.shape[1]), np.ones(latents.shape[1])
        if guidance and guidance.standardised:
            mean, scale = latents.mean(axis=0), latents.std(axis=0) + 1e-6
        # Shape (digits, detectors, d): one detector on all digits, or one per step.
        all_latents = latents[:, None]
        fitted_on = {"ocsvm": (all_latents, gamma), "ocsvm-fixed": (all_latents, FIXED_GAMMA)}
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
        latents = encode(self.trained.model, images)
        standard = (latents.numpy().astype(np.float64) - self.mean) / self.scale
        scores = {}
        for name in self.read_outs:
            if name == "reconstruction":
                scores[name] = reconstruction_error(self.trained.model, images, latents).numpy()
            elif name == "distance":
                sphere = next(term for term in self.trained.terms if isinstance(term, Sphere))
                scores[name] = sphere.distance(latents).numpy()
            else:
                scores[name] = -_mean_decision(self.detectors[name], standard)
        return scores


def _mean_decision(detectors: DetectorField, latents: np.ndarray) -> np.ndarray:
    """Mean of the decision functions of all detectors for each latent, (N,)."""
    repeated = np.broadcast_to(latents[:, None], (len(latents), len(detectors), latents.shape[1]))
    return np.asarray(detectors.decision_function(repeated, jobs=1)).mean(axis=1)
