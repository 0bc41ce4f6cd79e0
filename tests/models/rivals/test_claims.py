"""Each method finds what its paper says that it finds, on small synthetic brains."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from voxout.models.rivals.registry import make
from voxout.models.rivals.rival import checked_scores

from .small_heads import MASK, brain, bright_blob, controls, missing_part, scan, texture

CLAIMS = [
    ("intensity", missing_part, 0.9),
    ("z-score", bright_blob, 0.95),
    ("patch-mahalanobis", texture, 0.8),
    ("ae-spatial", bright_blob, 0.9),
    ("ae-dense", bright_blob, 0.9),
    ("vae-spatial", bright_blob, 0.9),
    ("vae-dense", bright_blob, 0.9),
    ("vae-restoration", bright_blob, 0.85),
    ("denoising-unet", bright_blob, 0.9),
    ("cevae", bright_blob, 0.85),
    ("two-vaes", bright_blob, 0.8),
    ("masked-ae", bright_blob, 0.8),
    ("vqvae-transformer", missing_part, 0.8),
    ("patched-diffusion", bright_blob, 0.9),
    ("feature-inversion", missing_part, 0.9),
    ("deep-svdd", texture, 0.9),
    ("siamese-ocsvm", bright_blob, 0.8),
    ("siamese-ocsvm-patient", bright_blob, 0.8),
    ("ogae", bright_blob, 0.8),
]


@pytest.mark.parametrize(("name", "patient", "least"), CLAIMS, ids=[claim[0] for claim in CLAIMS])
def test_a_method_finds_what_its_paper_claims(tmp_path, name, patient, least):
    rival, (image, lesion) = make(name), patient()
    rival.fit(controls(tmp_path))
    scores = checked_scores(name, scan(image), rival.score(scan(image)))
    inside = MASK.brain_mask
    assert roc_auc_score(lesion[inside], scores[inside]) > least
    # A brain without a lesion does not get such scores at this place.
    healthy = checked_scores(name, scan(brain(8)), rival.score(scan(brain(8))))
    assert np.mean(healthy[lesion]) < np.mean(scores[lesion])
