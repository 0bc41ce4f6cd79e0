"""Patch auto-encoders with one-class SVMs on their latents.

- Alaverdyan, Jung, Bouet, Lartizien, "Regularized siamese neural network for unsupervised outlier detection on brain
  multiparametric MRI" (MedIA 2020), and Pinon, Trombetta, Lartizien (MIDL 2023, arXiv 2304.08058): a patch
  auto-encoder learns with L = MSE + kappa (1 - cos(z_i, z_j)) over patches of two controls at one location. Then one
  SVM with an RBF kernel is fitted either for each location, on the controls (2020), or for each patient, on patches
  of that patient (2023). score = -f(z), f the decision function.
- Pinon, Trombetta, Lartizien (arXiv 2507.21164, OgAE): the auto-encoder learns with L = MSE + lambda L_guidance,
  where the SVMs of each location are solved in each training step; then one SVM for each location.

There: axial patches of 15 x 15 voxels at 1 mm, a latent of 16, nu 0.03, gamma 0.01 on latents that are not scaled,
lambda 0.01; kappa is not published. Here: the same, patches of 15 mm at the resolution of the run; kappa 1; the steps
of the preset; latents for the SVM of a patient from 2,000 of its voxels, with gamma 1 / (d variance), since 0.01 was
set for the latents of many controls. With few controls, the trainer raises nu of the guidance (`guidance_nu`).
"""

import numpy as np
from sklearn.svm import OneClassSVM

from ..anomaly.scorers import SvmParts
from ..encoder.checkpoint import Checkpoint
from ..encoder.training import train_encoder
from ..features.extractors import LatentFeatures
from ..settings import ModelSettings
from .scans import Controls, Scan, require_controls
from .voxelwise_fit import fit_voxelwise, voxelwise_scores

_NU, _GAMMA, _LATENT_SIZE, _PATCH_MM = 0.03, 0.01, 16, 15.0
_GUIDED_SHARE = 0.2
_LEARNING_RATE = 2e-3
_VOXELS_OF_A_PATIENT = 2000
_AT_ONCE = 50_000


class PatchOcsvm:
    """One-class SVM on the latents of each location.

    Parameters
    ----------
    siamese : float
        kappa, the weight of the siamese term.
    guidance : float
        lambda, the weight of the guidance.
    """

    fewest_controls = 8
    is_costly = True

    def __init__(self, siamese: float = 0.0, guidance: float = 0.0):
        self.siamese, self.guidance = siamese, guidance

    def fit(self, controls: Controls) -> None:
        """Train the encoder, and fit the SVMs."""
        self.encode_with(controls)
        parts = SvmParts(self.settings.detector, self.features.size)
        self.scorer = fit_voxelwise(controls, self.features, parts)

    def encode_with(self, controls: Controls) -> None:
        """Train the encoder, or go on with it."""
        require_controls(self.name, len(controls), self.fewest_controls)
        self.controls = controls
        learnt_from, held_back = controls.monitored()
        self.settings = published_settings(controls.preset.encoder_steps, self.siamese, self.guidance)
        store = controls.store.only(controls.channels.modalities)
        checkpoint: Checkpoint = train_encoder(
            store,
            self.settings,
            controls.folder / "encoder",
            train=learnt_from,
            held_out=held_back,
            seed=controls.seed,
            device=controls.device,
        )
        rows = tuple(range(len(controls.channels.modalities)))
        self.features = LatentFeatures(controls.mask, rows, checkpoint.encoder, controls.device)

    @property
    def name(self) -> str:
        """For messages."""
        return "ogae" if self.guidance else "siamese-ocsvm"

    def score(self, subject: Scan) -> np.ndarray:
        """Return minus the decision functions."""
        return voxelwise_scores(self.controls, self.features, self.scorer, subject)


class PatientOcsvm(PatchOcsvm):
    """One-class SVM on the latents of the patient's own patches."""

    def __init__(self) -> None:
        super().__init__(siamese=1.0)

    def fit(self, controls: Controls) -> None:
        """Train the encoder; the SVM is fitted on each patient."""
        self.encode_with(controls)

    def score(self, subject: Scan) -> np.ndarray:
        """Fit the SVM on random voxels of the subject, and return minus its decision function."""
        mask = self.controls.mask
        latents = self.features.compute(subject.channels)
        brain = np.flatnonzero(mask.transform(subject.inside))
        random = np.random.default_rng(self.controls.seed)
        chosen = random.choice(brain, min(_VOXELS_OF_A_PATIENT, len(brain)), replace=False)
        svm = OneClassSVM(nu=_NU, gamma="scale").fit(latents[chosen])
        scores = np.zeros(mask.size, np.float32)
        for start in range(0, len(brain), _AT_ONCE):
            block = brain[start : start + _AT_ONCE]
            scores[block] = -svm.decision_function(latents[block])
        return mask.inverse_transform(scores)


def published_settings(steps: int, siamese: float, guidance: float) -> ModelSettings:
    """Return the settings as published, for this number of training steps."""
    guided = round(_GUIDED_SHARE * steps)
    return ModelSettings.model_validate(
        {
            "encoder": {
                "patch_size_mm": _PATCH_MM,
                "planes": ["axial"],
                "channels": "modalities",
                "latent_size": _LATENT_SIZE,
            },
            "guidance": {"weight": guidance, "nu": _NU, "gamma": _GAMMA},
            "training": {
                "pretraining_steps": steps - guided,
                "guided_steps": guided,
                "learning_rate": _LEARNING_RATE,
                "siamese_weight": siamese,
            },
            "detector": {"nu": _NU, "gamma": _GAMMA, "latent_scaling": "raw", "score": "decision"},
        }
    )
