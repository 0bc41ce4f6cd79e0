"""Guidance loss: hinge loss of held-back controls under the decision function of a one-class SVM.

At one voxel, with F the decision function of the one-class SVM fitted on z_sv (`dual`), and nu its parameter:

    L = (1/nu) * sum over z_loss of relu(-F(z))

(Pinon, Trombetta, Lartizien, arXiv 2507.21164, in the authors' scale, in which their weight is 1e-2.)

The gradient has two parts. The *expander* is the gradient with respect to z_sv, through the solution a and the offset,
with z_loss fixed. The *compactor* is the gradient with respect to z_loss only. With h = 1/nu where F < 0, and K the
kernel among z_sv:

    g_a = -k(z_sv, z_loss) h,   g_offset = sum(h)
    K_FF u + w 1 = g_a,   sum(u) = -g_offset         on the free vectors F: one linear solve for both
    dL = -sum_{i in F, j} u_i a_j dK_ij  -  sum_q h_q sum_i a_i dk(z_i, z_q)

Vectors at the upper bound enter only through a_j = 1 (or their weight). With gamma = "scale", gamma is differentiated
as well, so that the loss is invariant to scaling of all latents: <z, dL/dz> = 0.
"""

import numpy as np
import torch

from ...data_manifests.errors import UserError
from . import torch_solver
from .dual import check_finite, check_nu, check_shape, in_threads, weights_of_each
from .kernel import centred_kernel, checked_gamma, kernel_gamma
from .numba_solver.loss import loss_batch
from .weights import checked_weights

_LOCATIONS_A_THREAD = 64


def guidance_loss(
    latents_sv: torch.Tensor,
    latents_loss: torch.Tensor,
    *,
    nu: float,
    gamma: float | str,
    expander: float = 1.0,
    compactor: float = 1.0,
    weights=None,
) -> torch.Tensor:
    """Guidance loss at every voxel of a batch, computed in float64 on the device of the latents.

    Parameters
    ----------
    latents_sv : tensor, (B, m, d)
        Latents that the one-class SVM is fitted on.
    latents_loss : tensor, (B, q, d)
        Latents that the loss is evaluated on.
    nu : float
        In (0, 1].
    gamma : float or str
        As in `kernel.kernel_gamma`, computed from `latents_sv`.
    expander, compactor : float
        Weights of the gradients with respect to `latents_sv` and `latents_loss`. They do not change the value of the
        loss; (1, 1) is the full gradient.
    weights : ndarray, (m,) or (B, m), optional
        Weight of each latent in the one-class SVM, as scikit-learn's `sample_weight`; by default 1. Not differentiated.

    Returns
    -------
    tensor, (B,)
        0 where no latent is an outlier; float64 for latents in float64, else float32. Differentiable once.

    Raises
    ------
    UserError
        Shapes do not match, nu, gamma or a weight is out of range, or latents are not finite (names the voxels).
    """
    check_nu(nu)
    for latents, name in ((latents_sv, "latents_sv"), (latents_loss, "latents_loss")):
        check_shape(latents, name)
        check_finite(latents, name)
    sv_shape, loss_shape = tuple(latents_sv.shape), tuple(latents_loss.shape)
    if sv_shape[0] != loss_shape[0] or sv_shape[2] != loss_shape[2]:
        raise UserError(
            f"latents_sv {sv_shape} and latents_loss {loss_shape} differ in voxels or dimensions, expected the same "
            "first and last axis. Split one batch along its second axis."
        )
    checked_gamma(gamma, sv_shape[2])
    bounds = weights_of_each(checked_weights(weights, sv_shape[1], sv_shape[0]), latents_sv)
    return _GuidanceLoss.apply(latents_sv, latents_loss, bounds, nu, gamma, expander, compactor)


class _GuidanceLoss(torch.autograd.Function):
    """Autograd function; the forward pass also computes the gradients, the backward pass only scales them."""

    @staticmethod
    def forward(ctx, latents_sv, latents_loss, weights, nu, gamma, expander, compactor):
        sv, rest = latents_sv.detach().to(torch.float64), latents_loss.detach().to(torch.float64)
        width = kernel_gamma(sv, gamma)
        differentiate = any(ctx.needs_input_grad[:2])
        compute = loss_and_gradients_torch if sv.is_cuda else loss_and_gradients_numba
        loss, grad_sv, grad_rest = compute(
            sv, rest, weights, width, nu, gamma == "scale", expander, compactor, differentiate
        )
        if differentiate:
            ctx.save_for_backward(grad_sv.to(latents_sv.dtype), grad_rest.to(latents_loss.dtype))
        both_double = latents_sv.dtype == latents_loss.dtype == torch.float64
        return loss if both_double else loss.to(torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):  # pyright: ignore[reportIncompatibleMethodOverride] (torch's own decorator)
        grad_sv, grad_rest = ctx.saved_tensors
        weight = grad_output[:, None, None]
        own = (weight * grad_sv).to(grad_sv.dtype), (weight * grad_rest).to(grad_rest.dtype)
        return *own, None, None, None, None, None


def loss_and_gradients_numba(sv, rest, weights, gamma, nu, by_scale, expander, compactor, differentiate):
    """Loss (B,) and weighted gradients with respect to sv (B, m, d) and rest (B, q, d), computed with numba.

    The array `weights` (B, m) holds those of sv.
    """
    sv_array, rest_array = np.ascontiguousarray(sv.numpy()), np.ascontiguousarray(rest.numpy())
    gamma_array = gamma.numpy()
    loss, grad_sv, grad_rest = np.zeros(len(sv_array)), np.zeros_like(sv_array), np.zeros_like(rest_array)

    def compute(part: slice) -> None:
        loss_batch(
            sv_array[part],
            rest_array[part],
            weights[part],
            gamma_array[part],
            float(nu),
            by_scale,
            float(expander),
            float(compactor),
            differentiate,
            loss[part],
            grad_sv[part],
            grad_rest[part],
        )

    in_threads(compute, len(loss), step=_LOCATIONS_A_THREAD, jobs=torch.get_num_threads())
    return torch.from_numpy(loss), torch.from_numpy(grad_sv), torch.from_numpy(grad_rest)


def loss_and_gradients_torch(sv, rest, weights, gamma, nu, by_scale, expander, compactor, differentiate):
    """As `loss_and_gradients_numba`, with batched torch on the device of the tensors."""
    mean = sv.mean(dim=1, keepdim=True)
    z, y = sv - mean, rest - mean
    solved = torch_solver.solve(z, gamma, nu, torch.from_numpy(weights).to(sv.device))
    a = solved.dual_coef
    cross = centred_kernel(z, y, gamma)
    decision = torch.einsum("bi,biq->bq", a, cross) - solved.centred_offset[:, None]
    loss = torch.relu(-decision).sum(dim=1) / nu
    if not differentiate:
        return loss, torch.zeros_like(sv), torch.zeros_like(rest)

    weight = (decision < 0).to(sv.dtype) / nu
    g_a = -torch.einsum("biq,bq->bi", cross, weight)
    u = torch_solver.adjoint(solved, g_a, weight.sum(dim=1))
    twice = 2 * gamma[:, None, None]
    pair = (u[:, :, None] * a[:, None, :] + a[:, :, None] * u[:, None, :]) * (1 + solved.kernel)
    cross_pair = a[:, :, None] * weight[:, None, :] * (1 + cross)
    reach = pair.sum(dim=2) + cross_pair.sum(dim=2)
    grad_z = twice * (reach[:, :, None] * z - pair @ z - cross_pair @ y)
    grad_y = twice * (cross_pair.sum(dim=1)[:, :, None] * y - cross_pair.mT @ z)
    if by_scale:
        # The loss depends on latents and gamma only through gamma*|difference|^2: dL/dgamma = <z, dL/dz> / (2 gamma).
        radial = (z * grad_z).sum(dim=(1, 2)) + (y * grad_y).sum(dim=(1, 2))
        centred = sv - sv.mean(dim=(1, 2), keepdim=True)
        spread = (centred**2).sum(dim=(1, 2))
        share = torch.where(spread > 0, radial / torch.where(spread > 0, spread, 1.0), 0.0)
        grad_z = grad_z - share[:, None, None] * centred
    return loss, expander * grad_z, compactor * grad_y
