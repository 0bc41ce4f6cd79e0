"""Restoration of a scan by the prior of a variational auto-encoder.

You, Tezcan, Chen, Konukoglu, "Unsupervised lesion detection via image restoration with a normative prior" (MIDL
2019), as compared by Baur et al. (MedIA 2021): a scan y is moved to the most likely healthy scan near it,

    x* = argmin_x  -ELBO(x) + weight TV(x - y),        score(y) = |y - x*|.

There: 500 gradient steps, and a weight of the total variation chosen such that healthy scans change little. Here: the
dense variational auto-encoder of `autoencoders`, the number of steps of the preset, and steps by Adam at 0.5 / their
number, so that each voxel can move through half of the range of intensities; the weight is 1 relative to the ELBO of
a voxel. Gradients of the ELBO are those of the mean of the code.
"""

import torch

from .autoencoders import DenseVae
from .slice_networks import residual
from .slices import Slices

_REACH = 0.5
_WEIGHT = 1.0


class VaeRestoration(DenseVae):
    """Dense variational auto-encoder; the score is what its restoration changes."""

    name = "vae-restoration"

    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        restored = slices.images.clone().requires_grad_(True)
        steps = self.preset.restoration_steps
        optimiser = torch.optim.Adam([restored], lr=_REACH / steps)
        for _ in range(steps):
            prior = self.negative_elbo(self.network, Slices(restored, slices.inside), None)
            cost = prior + _WEIGHT * total_variation((restored - slices.images) * slices.inside) / n_inside(slices)
            optimiser.zero_grad()
            cost.backward(inputs=[restored])
            optimiser.step()
        return residual(slices.images, restored.detach())


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Sum of the absolute differences of neighbours along rows and columns of slices (N, M, H, W)."""
    return images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum()


def n_inside(slices: Slices) -> torch.Tensor:
    """Count the values in the brain; at least 1."""
    return (slices.inside.sum() * slices.images.shape[1]).clamp(min=1)
