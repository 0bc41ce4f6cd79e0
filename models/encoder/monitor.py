"""Monitoring of encoder training: metrics at regular steps, on fixed batches."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from ...data_manifests.errors import UserError
from ..ocsvm.dual import solve_dual
from ..ocsvm.kernel import centred_kernel
from ..settings import GuidanceSettings, resolve_gamma
from .checkpoint import TrainingRow
from .network import PatchAutoEncoder, PatchEncoder
from .patch_shape import Patches
from .schedule import guidance_nu, support_size

logger = logging.getLogger(__name__)

_SATURATED_KERNEL = 1e-3
_COLLAPSED_RANK = 1.5


@dataclass(frozen=True, eq=False)
class TrainingMonitor:
    """Metrics of an auto-encoder in eval mode on fixed batches.

    Attributes
    ----------
    mixed : tensors, (N, C, p, p[, p])
        Patches of training controls, one tensor per patch shape.
    held_out : tensors, (N, C, p, p[, p]), or None
    together : tensors, (B, n, C, p, p[, p]), or None
        Co-located patches of training controls; None if there are too few controls to split.
    guidance : GuidanceSettings
    """

    mixed: Patches
    held_out: Patches | None
    together: Patches | None
    guidance: GuidanceSettings

    @torch.no_grad()
    def row(
        self, model: PatchAutoEncoder, *, step: int, phase: str, learning_rate: float, guidance_weight: float
    ) -> TrainingRow:
        """Compute the metrics; leaves the model in eval mode."""
        model.eval()
        latents = model.encoder(self.mixed)
        guidance, outside_share, kernel_mean = self._boundary(model.encoder)
        return TrainingRow(
            step=step,
            phase=phase,
            mse_train=model.error(latents, self.mixed).item(),
            mse_held_out=None if self.held_out is None else model(self.held_out).item(),
            guidance=guidance,
            guidance_weight=guidance_weight,
            outside_share=outside_share,
            kernel_mean=kernel_mean,
            latent_scale=latents.var(dim=0, correction=0).mean().sqrt().item(),
            effective_rank=effective_rank(latents),
            learning_rate=learning_rate,
        )

    def _boundary(self, encoder: PatchEncoder) -> tuple[float, float, float] | tuple[None, None, None]:
        """Metrics of the one-class SVMs of the monitored voxels: guidance, outside_share, kernel_mean."""
        if self.together is None:
            return None, None, None
        latents = encoder(self.together).double()
        m, nu = support_size(latents.shape[1]), guidance_nu(self.guidance.nu, latents.shape[1])
        gamma = resolve_gamma(self.guidance.gamma, latents.shape[-1])
        solution = solve_dual(latents[:, :m], nu=nu, gamma=gamma)
        kernel = 1 + centred_kernel(latents[:, m:], latents[:, :m], solution.gamma)
        decision = (kernel @ solution.dual_coef[:, :, None])[..., 0] - solution.offset[:, None]
        loss = torch.relu(-decision).sum(dim=1) / nu
        return loss.mean().item(), (decision < 0).double().mean().item(), kernel.mean().item()


def effective_rank(latents: torch.Tensor) -> float:
    """Effective rank of latents (N, d): exp of the entropy of the covariance eigenvalues; 0 if all are equal."""
    centred = (latents - latents.mean(dim=0)).double().cpu().numpy()
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred).clip(min=0)
    if not eigenvalues.sum() > 0:
        return 0.0
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def require_no_collapse(row: TrainingRow, latent_size: int) -> None:
    """Stop training if the latents have collapsed; warn if the kernel is saturated.

    Latents of hardly more than one dimension are useless for anomaly maps. A saturated kernel only makes guidance
    ineffective; the reconstruction is not affected.

    Raises
    ------
    UserError
        The effective rank of the latents is less than 1.5.
    """
    if latent_size > 1 and not row.effective_rank >= _COLLAPSED_RANK:
        raise UserError(
            f"Training: after step {row.step} the effective rank of the latents is {row.effective_rank:.2f} of "
            f"{latent_size}, expected at least {_COLLAPSED_RANK}. Lower models.guidance.weight or "
            "models.training.siamese_weight, or train for more steps."
        )
    if row.phase == "guided" and row.kernel_mean is not None and row.kernel_mean < _SATURATED_KERNEL:
        logger.warning(
            "Training: after step %d the kernel between controls is %.1e on average, near 0: guidance has no effect. "
            'Lower models.guidance.gamma or set it to "scale".',
            row.step,
            row.kernel_mean,
        )
