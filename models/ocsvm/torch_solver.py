"""Solver of the dual of the one-class SVM for a batch of locations in torch, used on GPUs.

The stages are those of `numba_solver` (see there for the equations), run for all locations in parallel: SMO, then
Newton steps on the free sets, which are packed and padded to the largest one. Converged locations are not changed.
Steps are masked instead of branched, so that the number of kernel launches does not grow with the batch.
"""

from dataclasses import dataclass

import torch

from .kernel import centred_kernel

_COARSE = 1e-2
_FINE = 1e-9
_RIDGE = 1e-13
# Coefficients this close to a bound are set to it; otherwise rounding would create spurious free vectors.
_SNAP = 1e-12
# As in `numba_solver.workspace`.
_SMALLEST_WEIGHT = 1e-9


@dataclass(frozen=True, eq=False)
class TorchSolution:
    """As `dual.DualSolution`, with the quantities needed for the gradient.

    Attributes
    ----------
    dual_coef, free, at_upper : tensor, (B, m)
        The last marks the vectors whose a is at its upper bound.
    offset, kkt_gap : tensor, (B,)
    centred_offset : tensor, (B,)
        Offset minus the sum of a, computed directly; accurate where the kernel is nearly flat.
    kernel : tensor, (B, m, m)
        K - 1.
    ridge : tensor, (B,)
    """

    dual_coef: torch.Tensor
    offset: torch.Tensor
    centred_offset: torch.Tensor
    kkt_gap: torch.Tensor
    free: torch.Tensor
    at_upper: torch.Tensor
    kernel: torch.Tensor
    ridge: torch.Tensor


def solve(latents: torch.Tensor, gamma: torch.Tensor, nu: float, weights: torch.Tensor) -> TorchSolution:
    """Solve the dual for latents (B, m, d) in float64, gamma (B,), and weights (B, m), in each row one above 0.

    All but the results is in a unit of the size of the largest weight of a location, as in `numba_solver.workspace`.
    """
    largest = weights.amax(dim=1, keepdim=True)
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    upper = torch.where(weights >= _SMALLEST_WEIGHT * largest, weights / unit, 0.0)
    total = _dual_mass(nu, upper.sum(dim=1))
    kernel = centred_kernel(latents, latents, gamma)
    present = (upper > 0).to(latents.dtype)
    n_present = present.sum(dim=1)
    among = torch.where(present[:, :, None] * present[:, None, :] > 0, kernel, 0.0)
    scale = -among.sum(dim=(1, 2)) / (n_present * (n_present - 1)).clamp(min=1)
    ridge = _RIDGE * scale
    a = _start(latents, upper, total)
    gradient = torch.einsum("bij,bj->bi", kernel, a)
    a, gradient = _smo_steps(kernel, a, upper, gradient, _COARSE * scale)
    a = _project_to_mass(_polish(kernel, a, upper, gradient, 0.01 * _FINE * scale, ridge), upper, total)
    gradient = torch.einsum("bij,bj->bi", kernel, a)
    highest, lowest = _extremes(a, upper, gradient)
    free = (a > 0) & (a < upper)
    n = free.sum(dim=1)
    level = torch.where(free, gradient, 0.0).sum(dim=1) / n.clamp(min=1)
    between = torch.where(lowest.isinf(), highest, 0.5 * (highest + lowest))
    offset = torch.where(n > 0, level, between)
    gap = torch.where(lowest.isinf(), 0.0, (highest - lowest).clamp(min=0))
    one = unit[:, 0]
    return TorchSolution(unit * a, one * (offset + total), one * offset, one * gap, free, a >= upper, kernel, ridge)


def _dual_mass(nu: float, weight: torch.Tensor) -> torch.Tensor:
    """As `dual.dual_mass`."""
    total = nu * weight
    nearest = total.round()
    return torch.where(((total - nearest).abs() < 1e-9) & (nearest > 0), nearest, total)


def _start(latents: torch.Tensor, upper: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Give the latents that are farthest from the mean their upper bounds until the sum is `total`."""
    distance = ((latents - latents.mean(dim=1, keepdim=True)) ** 2).sum(dim=2)
    order = distance.argsort(dim=1, descending=True, stable=True)
    bounds = upper.gather(1, order)
    before = bounds.cumsum(dim=1) - bounds
    given = torch.minimum((total[:, None] - before).clamp(min=0.0), bounds)
    return torch.zeros_like(upper).scatter(1, order, given)


def _extremes(a: torch.Tensor, upper: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    highest = torch.where(a > 0, gradient, -torch.inf).amax(dim=1)
    lowest = torch.where(a < upper, gradient, torch.inf).amin(dim=1)
    return highest, lowest


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values.gather(1, index[:, None])[:, 0]


def _rows(kernel: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return kernel[torch.arange(len(index), device=index.device), index]


def _smo_steps(kernel, a, upper, gradient, tolerance):
    """Update one working pair per location until every KKT gap is below its tolerance."""
    batch, m = a.shape
    rows = torch.arange(batch, device=a.device)
    for round_ in range(100 * m):
        giving = torch.where(a > 0, gradient, -torch.inf)
        highest, giver = giving.max(dim=1)
        slope = torch.where(a < upper, highest[:, None] - gradient, 0.0).clamp(min=0)
        busy = slope.amax(dim=1) > tolerance
        # The check synchronises with the GPU, so it is done every 8 iterations.
        if round_ % 8 == 0 and not bool(busy.any()):
            break
        row = _rows(kernel, giver)
        taker = (slope**2 / (-row).clamp(min=1e-300)).argmax(dim=1)
        step = _take(slope, taker) / (-2 * _take(row, taker)).clamp(min=1e-300)
        give, most = _take(a, giver), _take(upper, taker)
        room = most - _take(a, taker)
        step = torch.where(busy, torch.minimum(step, torch.minimum(give, room)), 0.0)
        a = a.clone()
        a[rows, giver] = torch.where(busy & (give - step <= _SNAP), 0.0, give - step)
        a[rows, taker] = torch.where(busy & (room - step <= _SNAP), most, _take(a, taker) + step)
        gradient = gradient + step[:, None] * (_rows(kernel, taker) - row)
    return a, gradient


def _polish(kernel, a, upper, gradient, tolerance, ridge):
    """Newton steps on the free sets; each removes a vector at its bound or frees the one with the largest violation."""
    batch, m = a.shape
    rows = torch.arange(batch, device=a.device)
    free = (a > 0) & (a < upper)
    refined = torch.zeros(batch, dtype=torch.long, device=a.device)
    done = torch.zeros(batch, dtype=torch.bool, device=a.device)
    for _ in range(20 * m + 100):
        step = newton_step(kernel, free, -gradient, torch.zeros_like(ridge), ridge)
        step = torch.where(done[:, None], 0.0, step)
        meets = ((step < 0) & (a + step <= _SNAP)) | ((step > 0) & (a + step >= upper - _SNAP))
        room = torch.where(step < 0, -a / step, (upper - a) / step)
        nearest, blocking = torch.where(free & meets, room, torch.inf).min(dim=1)
        blocked = nearest.isfinite() & ~done
        length = torch.where(blocked, nearest, 1.0).clamp(max=1.0)
        moved = torch.minimum((a + length[:, None] * step).clamp(min=0.0), upper)
        bound = torch.where(_take(step, blocking) < 0, 0.0, _take(upper, blocking))
        moved[rows, blocking] = torch.where(blocked, bound, _take(moved, blocking))
        gradient = gradient + torch.einsum("bij,bj->bi", kernel, moved - a)
        a = moved
        free[rows, blocking] &= ~blocked

        highest, lowest = _extremes(a, upper, gradient)
        arrived = ~blocked & ~done
        n = free.sum(dim=1)
        inside_high = torch.where(free, gradient, -torch.inf).amax(dim=1)
        inside_low = torch.where(free, gradient, torch.inf).amin(dim=1)
        rounding = arrived & (n > 0) & (highest <= inside_high) & (lowest >= inside_low)
        done = done | (arrived & (highest - lowest <= tolerance)) | (rounding & (refined >= 2))
        if bool(done.all()):
            break
        refined = refined + (rounding & ~done).long()
        fresh = torch.einsum("bij,bj->bi", kernel, a)
        gradient = torch.where(rounding[:, None], fresh, gradient)
        releasing = arrived & ~rounding & ~done
        level = torch.where(free, gradient, 0.0).sum(dim=1) / n.clamp(min=1)
        takes = releasing & ((n == 0) | (level - lowest >= highest - level))
        gives = releasing & ((n == 0) | ~takes)
        taker = torch.where(a < upper, gradient, torch.inf).argmin(dim=1)
        giver = torch.where(a > 0, gradient, -torch.inf).argmax(dim=1)
        free[rows, taker] |= takes
        free[rows, giver] |= gives
    return a


def _project_to_mass(a, upper, total):
    """Remove the rounding error of the sum of a; a single free vector that reaches a bound is no longer free."""
    free = (a > 0) & (a < upper)
    rows = torch.arange(len(a), device=a.device)
    first = free.long().argmax(dim=1)
    bound = _take(upper, first)
    others = a.clone()
    others[rows, first] = 0.0
    value = total - others.sum(dim=1)
    lone = (free.sum(dim=1) == 1) & ~((value > _SNAP) & (value < bound - _SNAP))
    value = torch.where(lone, torch.where(value <= _SNAP, 0.0, bound), value)
    value = torch.minimum(value.clamp(min=0.0), bound)
    others[rows, first] = torch.where(free.any(dim=1), value, a[rows, first])
    return others


def newton_step(kernel, free, target, total, ridge):
    """Solve ``K_FF x + w 1 = target_F``, ``sum(x) = total`` on the free set F of each location; x is 0 outside F.

    The free vectors are packed to the front and the first is eliminated; the system is padded with the identity.
    """
    m = free.shape[1]
    most = max(int(free.sum(dim=1).max()), 1)
    order = free.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    inside = free.gather(1, order)
    packed = kernel.gather(1, order[:, :, None].expand(-1, -1, m)).gather(2, order[:, None, :].expand(-1, most, -1))
    values = target.gather(1, order)
    pivot_row = packed[:, 0, :]
    rest = inside[:, 1:]
    both = rest[:, :, None] & rest[:, None, :]
    reduced = packed[:, 1:, 1:] - pivot_row[:, 1:, None] - pivot_row[:, None, 1:]
    # Scaled to a diagonal near 1, to keep the padded system well conditioned.
    unit = (ridge / _RIDGE).clamp(min=1e-300)
    eye = torch.eye(most - 1, dtype=kernel.dtype, device=kernel.device)
    system = torch.where(both, reduced / unit[:, None, None], 0.0) + eye * torch.where(rest, _RIDGE, 1.0)[:, :, None]
    right = values[:, 1:] - values[:, :1] - total[:, None] * pivot_row[:, 1:]
    right = torch.where(rest, right / unit[:, None], 0.0)
    factor, _ = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    solved = torch.where(rest, solved, 0.0)
    first = torch.where(inside[:, :1], total[:, None] - solved.sum(dim=1, keepdim=True), 0.0)
    return torch.zeros_like(target).scatter(1, order, torch.cat([first, solved], dim=1))


def adjoint(solved: TorchSolution, g_a: torch.Tensor, g_offset: torch.Tensor) -> torch.Tensor:
    """Solve ``K_FF u + w 1 = g_a, sum(u) = -g_offset``: (B, m).

    Without free vectors, a is locally constant and the offset is the midpoint of the gradients of two vectors at their
    bounds.
    """
    u = newton_step(solved.kernel, solved.free, g_a, -g_offset, solved.ridge)
    gradient = torch.einsum("bij,bj->bi", solved.kernel, solved.dual_coef)
    upper = torch.where(solved.dual_coef > 0, gradient, -torch.inf).argmax(dim=1, keepdim=True)
    lower = torch.where(solved.at_upper, torch.inf, gradient).argmin(dim=1, keepdim=True)
    lower = torch.where(solved.at_upper.all(dim=1, keepdim=True), upper, lower)
    half = -0.5 * g_offset[:, None]
    between = torch.zeros_like(u).scatter_add(1, upper, half).scatter_add(1, lower, half)
    return torch.where(solved.free.any(dim=1, keepdim=True), u, between)
