"""Context-encoding variational auto-encoder, with the post-processing of StRegA.

Zimmerer, Kohl, Petersen, Isensee, Maier-Hein, "Context-encoding variational autoencoder for unsupervised anomaly
detection" (MIDL 2019): beside the loss of a variational auto-encoder, slices with squares set to 0 are to be
completed,

    loss = -ELBO(x) + |x - g(mu(x with squares masked))|,      score(x) = |x - g(mu(x))| |d KL(x) / dx|.

Chatterjee et al., "StRegA" (Computers in Biology and Medicine 2022), keep of such a map what exceeds Otsu's
threshold, without small connected parts. Here: the dense code of `autoencoders` and three masked rectangles a slice
of an eighth to a third of its edges; gradients averaged over 3 x 3 voxels; of the map, voxels below Otsu's threshold
of that scan, and parts of fewer than five voxels, are 0.
"""

import numpy as np
import torch
from skimage import filters, measure
from torch import nn
from torch.nn import functional

from .autoencoders import DenseVae
from .scans import Scan
from .slice_networks import box_masks, kl_divergence, mean_inside, residual
from .slices import Slices

_SMALLEST_VOX = 5


class ContextEncodingVae(DenseVae):
    """Variational auto-encoder that also completes masked slices."""

    name = "cevae"

    def loss(self, network: nn.Module, batch: Slices, generator: torch.Generator) -> torch.Tensor:
        """Return the loss."""
        images = batch.images
        hidden = box_masks((len(images), *images.shape[2:]), generator, images.device)
        completed = self.decode(network, self.encode(network, images * ~hidden)[0])
        context = mean_inside((completed - images).abs(), batch.inside) / self.scale
        return self.negative_elbo(network, batch, generator) + context

    def slice_scores(self, slices: Slices) -> torch.Tensor:
        """Return the scores of slices."""
        images = slices.images.clone().requires_grad_(True)
        mu, logvar = self.encode(self.network, images)
        # The batch is averaged; each slice's own gradient does not depend on the others.
        (gradient,) = torch.autograd.grad(kl_divergence(mu, logvar) * len(images), images)
        with torch.inference_mode():
            # Gradients are noisy: a mean over 3 x 3 voxels.
            steepness = functional.avg_pool2d(gradient.abs().mean(dim=1), 3, stride=1, padding=1)
            return residual(slices.images, self.decode(self.network, mu)) * steepness

    def finished(self, volume: np.ndarray, subject: Scan) -> np.ndarray:
        """Filter the map."""
        return largest_parts(volume, subject.inside)


def largest_parts(volume: np.ndarray, inside: np.ndarray, smallest_vox: int = _SMALLEST_VOX) -> np.ndarray:
    """Set a map to 0 below Otsu's threshold of its values in the brain, and in small connected parts above it."""
    values = volume[inside]
    if np.ptp(values) == 0:
        return np.where(inside, volume, 0)
    above = inside & (volume > filters.threshold_otsu(values))
    labels = np.asarray(measure.label(above, connectivity=3))
    large = np.bincount(labels.ravel()) >= smallest_vox
    large[0] = False
    return np.where(large[labels], volume, 0)
