"""Loss terms against direct computation, and guidance against the brain pipeline."""

import numpy as np
import pytest
import torch
from voxout.models.ocsvm.guidance_loss import guidance_loss

from benchmarks.mnist_c import objectives
from benchmarks.mnist_c.methods import METHODS
from benchmarks.mnist_c.objectives import Guidance, Siamese, Sphere


def _latents(n=64, d=32, seed=0, **options) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_siamese_is_one_minus_cosine():
    direction = torch.tensor([[3.0, 4.0]]) * torch.tensor([[1.0], [2.0], [0.5]])
    assert Siamese(1.0)(direction, 0).item() == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert Siamese(0.5)(opposite, 0).item() == pytest.approx(1.0)


def test_centre_is_the_mean_with_a_minimum_distance_from_0():
    latents = torch.tensor([[1.0, 0.02, -0.02], [3.0, 0.02, -0.02]])
    sphere = Sphere().start(latents)
    torch.testing.assert_close(sphere.centre, torch.tensor([2.0, 0.1, -0.1]))
    torch.testing.assert_close(sphere.distance(latents), torch.tensor([1 + 2 * 0.08**2] * 2))


def test_hard_objective_is_the_mean_distance():
    sphere = Sphere(weight=2.0, centre=torch.zeros(1))
    assert sphere(torch.tensor([[1.0], [3.0]]), 0).item() == pytest.approx(2 * (1 + 9) / 2)


@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_soft_boundary_minimises_the_objective_over_the_radius(nu):
    latents = _latents(41).detach()
    sphere = Sphere(nu=nu, centre=torch.zeros(32, dtype=torch.float64))
    distance = sphere.distance(latents)
    radii = torch.linspace(0, distance.max().item(), 4001, dtype=torch.float64)
    objective = radii + torch.relu(distance - radii[:, None]).mean(dim=1) / nu
    assert sphere(latents, 0).item() == pytest.approx(objective.min().item(), rel=1e-3)


def test_soft_boundary_has_gradients_only_outside():
    latents = _latents()
    sphere = Sphere(nu=0.1, centre=torch.zeros(32, dtype=torch.float64))
    sphere(latents, 0).backward()
    moved = latents.grad.abs().sum(dim=1) > 0
    assert 0 < moved.sum() <= 7
    distance = sphere.distance(latents.detach())
    assert distance[moved].min() > distance[~moved].max()


def test_guidance_is_the_loss_of_the_brain_pipeline():
    assert objectives.guidance_loss is guidance_loss
    latents = _latents()
    expected = 0.01 * guidance_loss(latents[None, :32], latents[None, 32:], nu=0.1, gamma="scale")[0]
    torch.testing.assert_close(Guidance(0.01, 0.1)(latents, 0.9), expected)


@pytest.mark.parametrize(
    ("routes", "moved"),
    [
        (objectives.expander_only, (True, False)),
        (objectives.compactor_only, (False, True)),
        (objectives.full, (True, True)),
    ],
)
def test_routes_have_gradients_for_their_half_only(routes, moved):
    latents = _latents()
    Guidance(1.0, 0.1, routes=routes)(latents, 0.0).backward()
    assert (bool(latents.grad[:32].any()), bool(latents.grad[32:].any())) == moved


def test_schedule_starts_with_the_expander():
    assert [objectives.schedule(p) for p in (0.0, 0.49, 0.5, 0.99)] == [(1, 0), (1, 0), (1, 1), (1, 1)]


def test_standardised_guidance_is_invariant_to_scale():
    latents = _latents()
    term = Guidance(1.0, 0.1, gamma=0.01, standardised=True)
    rescaled = (latents * torch.linspace(0.1, 10, 32, dtype=torch.float64) + 5).detach()
    assert term(latents, 0).item() == pytest.approx(term(rescaled, 0).item(), rel=1e-3)


def test_variants_differ_from_ogae_in_the_named_settings():
    (base,) = METHODS["ogae"].choice.recipe(0.5).terms
    changed = {
        "ogae-expander": {"routes"},
        "ogae-compactor": {"routes"},
        "ogae-full": {"routes"},
        "ogae-standardised": {"standardised"},
        "ogae-fixed": {"gamma"},
        "ogae-standardised-fixed": {"standardised", "gamma"},
        "ogae-standardised-compactor": {"standardised", "routes"},
        "ogae-siamese": set(),
    }
    for name, fields in changed.items():
        *also, term = METHODS[name].choice.recipe(0.5).terms
        assert {f for f, value in vars(term).items() if value != vars(base)[f]} == fields
        assert [type(t) for t in also] == ([Siamese] if name == "ogae-siamese" else [])


def test_every_network_has_one_hyperparameter_with_four_values():
    for method in METHODS.values():
        if method.choice is not None:
            assert len(method.choice.tried) == 4 and method.choice.value in method.choice.tried
            assert np.all(np.diff(method.choice.tried) > 0)
