"""Contrast loss: tells edited from healthy patches by their distance to co-located latents of healthy controls.

At one voxel, with mean m and covariance S of the latents of some controls (the *support*), and P the mean of S over the
voxels of a batch, the distance of a latent z of size d is

    D(z) = log((z - m)' C^-1 (z - m) / d),   C = 0.5 S + 0.5 P + ridge

that is, 0 for a latent as far away as healthy ones usually are. The logit of "edited" is a (D - 1) + b, with a and b
learnt together with the encoder. The loss is the cross-entropy; healthy and edited latents have equal weight, however
many there are.
"""

import torch
from torch import nn
from torch.nn.functional import softplus

from .processes import ALONE, Processes

_POOLED_SHARE = 0.5
"""Weight of the covariance pooled over the voxels: a score of controls is too few for a covariance at each voxel."""
_RIDGE = 1e-2
"""Share of the mean variance that is added to all variances."""
_SMALLEST = 1e-3
"""Added to squared distances, so that their logarithm is finite."""
_FIRST_SLOPE = 3.0


class ContrastLoss(nn.Module):
    """Contrast loss with its learnt slope a and offset b."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(_FIRST_SLOPE))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        support: torch.Tensor,
        healthy: torch.Tensor,
        drawn: torch.Tensor,
        is_edited: torch.Tensor,
        processes: Processes = ALONE,
    ) -> torch.Tensor:
        """Compute the loss, in float64 on the device of the latents.

        Parameters
        ----------
        support : tensor, (B, m, d)
            Latents of m >= 2 controls at each voxel, which the mean and the covariance are computed from.
        healthy : tensor, (B, q, d)
            Latents of other controls at the same voxels.
        drawn : tensor, (B, d)
            Latents of the edited controls there.
        is_edited : tensor of bool, (B,)
            False where the edit is a sham, whose latent counts as healthy; at least one of the batch is True.
        processes : Processes
            Those that a batch is divided among, B being this one's part; the result is its summand of the loss.

        Returns
        -------
        tensor, ()
            NaN if a latent is not finite.
        """
        distances = log_distance(support, torch.cat([healthy, drawn[:, None]], dim=1), processes)
        logits = self.slope * (distances - 1) + self.offset
        held_back, own = logits[:, :-1], logits[:, -1]
        unedited = torch.cat([held_back.flatten(), own[~is_edited]])
        return 0.5 * (processes.summand(softplus(unedited)) + processes.summand(softplus(-own[is_edited])))


def log_distance(support: torch.Tensor, others: torch.Tensor, processes: Processes = ALONE) -> torch.Tensor:
    """Compute the distances D of latents (B, q, d) from those of the support (B, m, d): (B, q), float64."""
    support, others = support.double(), others.double()
    mean = support.mean(dim=1, keepdim=True)
    centred = support - mean
    covariance = centred.mT @ centred / (support.shape[1] - 1)
    pooled = processes.mean(covariance)
    ridge = _RIDGE * pooled.diagonal().mean().clamp_min(1e-12) * torch.eye(len(pooled)).to(pooled)
    mixed = (1 - _POOLED_SHARE) * covariance + _POOLED_SHARE * pooled + ridge
    factor, failed = torch.linalg.cholesky_ex(mixed)
    # Latents that are not finite give a loss of NaN, which stops the training with a sentence.
    factor = torch.where((failed == 0)[:, None, None], factor, torch.nan)
    whitened = torch.linalg.solve_triangular(factor, (others - mean).mT, upper=False)
    return torch.log((whitened**2).mean(dim=1) + _SMALLEST)
