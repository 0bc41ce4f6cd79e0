import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.ocsvm.dual import solve_dual
from voxout.models.ocsvm.guidance_loss import guidance_loss, loss_and_gradients_numba, loss_and_gradients_torch
from voxout.models.ocsvm.kernel import kernel_gamma

DOUBLE = torch.float64


def latents(batch, m, q, d, seed=0, stretch=1.3):
    generator = torch.Generator().manual_seed(seed)
    sv = torch.randn(batch, m, d, generator=generator, dtype=DOUBLE)
    return sv, stretch * torch.randn(batch, q, d, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("gamma", [1e-2, "scale"])
def test_value_agrees_with_scikit_learn(gamma):
    sv, rest = latents(3, 38, 20, 16)
    loss = guidance_loss(sv, rest, nu=0.1, gamma=gamma)
    for b in range(3):
        fitted = OneClassSVM(nu=0.1, gamma=gamma, tol=1e-10).fit(sv[b].numpy())
        decision = fitted.decision_function(rest[b].numpy())
        assert loss[b].item() == pytest.approx(np.maximum(-decision, 0).sum() / 0.1, rel=1e-6)


CORNERS = [
    (0.1, 0.1, 12),
    (0.1, "scale", 12),
    (0.03, "auto", 12),  # nu*m below 1
    (0.5, 0.1, 8),  # nu*m an integer
    (1.0, 0.1, 8),
    (0.25, 10.0, 8),  # a narrow kernel
    (0.5, 0.3, 2),
    (0.3, "0.2/d", 9),
]


@pytest.mark.parametrize(("nu", "gamma", "m"), CORNERS)
def test_gradcheck(nu, gamma, m):
    sv, rest = latents(3, m, 6, 3)
    assert torch.autograd.gradcheck(
        lambda a, b: guidance_loss(a, b, nu=nu, gamma=gamma), (sv.requires_grad_(), rest.requires_grad_())
    )


def wide_pair():
    sv = torch.tensor([[[0.0], [0.3], [0.9], [4.0], [-4.5], [0.5]]], dtype=DOUBLE)
    return sv, torch.tensor([[[5.0], [0.1], [-6.0]]], dtype=DOUBLE)


def test_gradcheck_without_free_vectors():
    # The two outer latents have a = 1: the offset is the midpoint between two vectors at their bounds.
    sv, rest = wide_pair()
    assert not solve_dual(sv, nu=2 / 6, gamma=0.01).free.any()
    sv.requires_grad_(), rest.requires_grad_()
    for gamma in (0.01, 0.001):
        assert torch.autograd.gradcheck(lambda a, b, g=gamma: guidance_loss(a, b, nu=2 / 6, gamma=g), (sv, rest))


def test_central_differences_at_the_published_size():
    sv, rest = latents(2, 38, 38, 16, seed=4)
    sv.requires_grad_(), rest.requires_grad_()
    for gamma in (1e-2, "scale"):
        sv.grad = rest.grad = None
        guidance_loss(sv, rest, nu=0.03, gamma=gamma).sum().backward()
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            along = [torch.randn(x.shape, generator=generator, dtype=DOUBLE) for x in (sv, rest)]
            with torch.no_grad():
                ahead, behind = (
                    guidance_loss(sv + h * along[0], rest + h * along[1], nu=0.03, gamma=gamma).sum()
                    for h in (1e-6, -1e-6)
                )
            expected = (sv.grad * along[0]).sum() + (rest.grad * along[1]).sum()
            assert ((ahead - behind) / 2e-6).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("nu", "gamma", "m"), [*CORNERS, (0.03, 1e-2, 38), (0.03, "scale", 64)])
def test_both_back_ends_agree(nu, gamma, m):
    sv, rest = latents(5, m, 10, 3, seed=2)
    width = kernel_gamma(sv, gamma)
    arguments = (sv, rest, np.ones(sv.shape[:2]), width, nu, gamma == "scale", 0.7, 0.4, True)
    for one, other in zip(loss_and_gradients_numba(*arguments), loss_and_gradients_torch(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_back_ends_agree_without_free_vectors():
    sv, rest = wide_pair()
    arguments = (sv, rest, np.ones(sv.shape[:2]), kernel_gamma(sv, 0.01), 2 / 6, False, 1.0, 1.0, True)
    for one, other in zip(loss_and_gradients_numba(*arguments), loss_and_gradients_torch(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_expander_and_compactor_weight_the_two_gradients():
    sv, rest = latents(2, 20, 15, 4)
    gradients = {}
    for weights in ((1, 0), (0, 1), (1, 1), (0.5, 2)):
        a, b = sv.clone().requires_grad_(), rest.clone().requires_grad_()
        loss = guidance_loss(a, b, nu=0.1, gamma=0.1, expander=weights[0], compactor=weights[1])
        loss.sum().backward()
        gradients[weights] = (a.grad, b.grad, loss.detach())
    full_sv, full_rest, value = gradients[1, 1]
    assert full_sv.abs().max() > 0 and full_rest.abs().max() > 0
    for (expander, compactor), (grad_sv, grad_rest, loss) in gradients.items():
        torch.testing.assert_close(grad_sv, expander * full_sv)
        torch.testing.assert_close(grad_rest, compactor * full_rest)
        torch.testing.assert_close(loss, value)


@given(st.integers(0, 10**6), st.sampled_from([2, 5, 20]), st.floats(0.02, 1), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_invariance_to_scaling_with_gamma_scale(seed, m, nu, stretch):
    sv, rest = (x * stretch + 2 for x in latents(1, m, 8, 3, seed=seed))
    sv.requires_grad_(), rest.requires_grad_()
    loss = guidance_loss(sv, rest, nu=nu, gamma="scale")
    loss.sum().backward()
    radial = (sv * sv.grad).sum() + (rest * rest.grad).sum()
    assert radial.item() == pytest.approx(0.0, abs=1e-9 * (1 + abs(loss.item()) * m / nu))
    # Invariance to adding a constant to all latents.
    moved = sv.grad.sum() + rest.grad.sum()
    assert abs(moved.item()) < 1e-8 * (1 + loss.item() / stretch * m)


def test_inliers_have_zero_loss():
    sv, _ = latents(2, 30, 1, 4)
    inside = sv.mean(dim=1, keepdim=True).requires_grad_()
    sv.requires_grad_()
    loss = guidance_loss(sv, inside, nu=0.05, gamma=0.01)
    loss.sum().backward()
    assert (loss == 0).all() and (sv.grad == 0).all() and (inside.grad == 0).all()


def test_equal_latents_have_finite_gradients():
    sv = torch.full((1, 6, 3), 2.0, dtype=DOUBLE, requires_grad=True)
    rest = torch.tensor([[[2.0, 2.0, 2.0], [2.5, 2.0, 2.0]]], dtype=DOUBLE, requires_grad=True)
    for gamma in (0.5, "scale"):
        loss = guidance_loss(sv, rest, nu=0.5, gamma=gamma)
        loss.sum().backward()
        assert torch.isfinite(sv.grad).all() and torch.isfinite(rest.grad).all()
        assert loss.item() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_computed_in_double(dtype):
    sv, rest = (x.to(dtype) for x in latents(3, 20, 10, 4))
    exact_sv, exact_rest = (x.to(DOUBLE).requires_grad_() for x in (sv, rest))
    expected = guidance_loss(exact_sv, exact_rest, nu=0.1, gamma=0.1)
    expected.sum().backward()
    sv.requires_grad_(), rest.requires_grad_()
    loss = guidance_loss(sv, rest, nu=0.1, gamma=0.1)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and sv.grad.dtype == dtype
    torch.testing.assert_close(loss, expected.float())
    torch.testing.assert_close(sv.grad, exact_sv.grad.to(dtype))
    torch.testing.assert_close(rest.grad, exact_rest.grad.to(dtype))


def test_gradient_is_weighted_by_the_incoming_gradient():
    sv, rest = latents(3, 20, 10, 4)
    sv.requires_grad_()
    weights = torch.tensor([2.0, 0.0, -1.0], dtype=DOUBLE)
    (guidance_loss(sv, rest, nu=0.1, gamma=0.1) * weights).sum().backward()
    weighted, sv.grad = sv.grad, None
    guidance_loss(sv, rest, nu=0.1, gamma=0.1).sum().backward()
    torch.testing.assert_close(weighted, weights[:, None, None] * sv.grad)


def test_invalid_input():
    sv, rest = latents(3, 5, 4, 2)
    with pytest.raises(UserError, match="differ in voxels or dimensions"):
        guidance_loss(sv, rest[:2], nu=0.1, gamma=0.1)
    with pytest.raises(UserError, match="latents_loss have the shape"):
        guidance_loss(sv, rest[0], nu=0.1, gamma=0.1)
    with pytest.raises(UserError, match="gamma"):
        guidance_loss(sv, rest, nu=0.1, gamma=-1.0)
    rest[2, 0, 0] = float("nan")
    with pytest.raises(UserError, match="latents_loss are NaN or infinite at voxel 2"):
        guidance_loss(sv, rest, nu=0.1, gamma=0.1)
