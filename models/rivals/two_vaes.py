"""Dissimilarity of the latents of two variational auto-encoders.

Albu, Enescu, Malago, "Tumor detection in brain MRIs by computing dissimilarities in the latent space of a variational
autoencoder" (NLDL 2020): auto-encoder A learns from healthy slices, auto-encoder B also from slices with lesions. A
slice is judged by

    D(x) = |mu_B(x) - mu_B(r)|,      r = reconstruction of x by A.

There: a score for each slice; B learns from unlabelled patients. Here: no patient is learnt from, so B sees controls
with random rectangles that are brighter or darker. D is spread to voxels: replacing a window of x by that of r would
change D by about the sum of (x - r) dD/dx over the window, and

    score(x) = |that sum over the 7 x 7 voxels around a voxel|.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from .autoencoders import DenseVae
from .scans import Controls
from .slice_networks import box_masks
from .slices import Slices

_WINDOW_VOX = 7
_LARGEST_SHIFT = 0.4


class _OfLesions(DenseVae):
    """Auto-encoder B: of slices with rectangles of another brightness."""

    name = "two-vaes-lesions"

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return minus the evidence lower bound of the edited slices."""
        images = batch.images
        boxes = box_masks((len(images), *images.shape[2:]), generator, images.device, boxes=1) & batch.inside
        shift = torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device) * 2 - 1
        return self.negative_elbo(network, replace(batch, images=images + _LARGEST_SHIFT * shift * boxes), generator)


class TwoVaes(DenseVae):
    """Auto-encoder A, of healthy slices, with auto-encoder B to compare its input and its output."""

    name = "two-vaes"

    def fit(self, controls: Controls) -> None:
        """Train both."""
        super().fit(controls)
        self.of_lesions = _OfLesions()
        self.of_lesions.fit(replace(controls, seed=controls.seed + 1))

    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the change of the dissimilarity by each window."""
        other = self.of_lesions
        with torch.no_grad():
            healthy = self.decode(self.network, self.encode(self.network, slices.images)[0]) * slices.inside
            goal, _ = other.encode(other.network, healthy)
        images = slices.images.clone().requires_grad_(True)
        distance = (other.encode(other.network, images)[0] - goal).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(distance, images)
        change = ((slices.images - healthy) * gradient).sum(dim=1)
        return functional.avg_pool2d(change, _WINDOW_VOX, stride=1, padding=_WINDOW_VOX // 2).abs()
