"""The terms by hand, and that guidance is the brain pipeline's."""

import numpy as np
import pytest
import torch
from voxout.models.ocsvm.guidance_loss import guidance_loss

from benchmarks.mnist_c import objectives
from benchmarks.mnist_c.methods import METHODS
from benchmarks.mnist_c.objectives import Guidance, Siamese, Sphere


def _codes(n=64, d=32, seed=0, **options) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_siamese_is_0_for_one_direction_and_counts_angles():
    direction = torch.tensor([[3.0, 4.0]]) * torch.tensor([[1.0], [2.0], [0.5]])
    assert Siamese(1.0)(direction, 0).item() == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert Siamese(0.5)(opposite, 0).item() == pytest.approx(1.0)


def test_the_centre_is_the_mean_kept_away_from_0():
    codes = torch.tensor([[1.0, 0.02, -0.02], [3.0, 0.02, -0.02]])
    sphere = Sphere().start(codes)
    torch.testing.assert_close(sphere.centre, torch.tensor([2.0, 0.1, -0.1]))
    torch.testing.assert_close(sphere.distance(codes), torch.tensor([1 + 2 * 0.08**2] * 2))


def test_the_hard_sphere_is_the_mean_distance():
    sphere = Sphere(weight=2.0, centre=torch.zeros(1))
    assert sphere(torch.tensor([[1.0], [3.0]]), 0).item() == pytest.approx(2 * (1 + 9) / 2)


@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_the_soft_boundary_is_the_objectives_minimum_over_the_radius(nu):
    codes = _codes(41).detach()
    sphere = Sphere(nu=nu, centre=torch.zeros(32, dtype=torch.float64))
    distance = sphere.distance(codes)
    radii = torch.linspace(0, distance.max().item(), 4001, dtype=torch.float64)
    objective = radii + torch.relu(distance - radii[:, None]).mean(dim=1) / nu
    assert sphere(codes, 0).item() == pytest.approx(objective.min().item(), rel=1e-3)


def test_the_soft_boundary_pulls_only_what_lies_outside():
    codes = _codes()
    sphere = Sphere(nu=0.1, centre=torch.zeros(32, dtype=torch.float64))
    sphere(codes, 0).backward()
    pulled = codes.grad.abs().sum(dim=1) > 0
    assert 0 < pulled.sum() <= 7
    distance = sphere.distance(codes.detach())
    assert distance[pulled].min() > distance[~pulled].max()


def test_guidance_is_the_brain_pipelines_loss():
    assert objectives.guidance_loss is guidance_loss
    codes = _codes()
    expected = 0.01 * guidance_loss(codes[None, :32], codes[None, 32:], nu=0.1, gamma="scale")[0]
    torch.testing.assert_close(Guidance(0.01, 0.1)(codes, 0.9), expected)


@pytest.mark.parametrize(
    ("routes", "moved"),
    [
        (objectives.expander_only, (True, False)),
        (objectives.compactor_only, (False, True)),
        (objectives.full, (True, True)),
    ],
)
def test_the_routes_move_the_halves_they_name(routes, moved):
    codes = _codes()
    Guidance(1.0, 0.1, routes=routes)(codes, 0.0).backward()
    assert (bool(codes.grad[:32].any()), bool(codes.grad[32:].any())) == moved


def test_the_schedule_begins_with_the_expander():
    assert [objectives.schedule(p) for p in (0.0, 0.49, 0.5, 0.99)] == [(1, 0), (1, 0), (1, 1), (1, 1)]


def test_standardised_guidance_knows_no_scale():
    codes = _codes()
    term = Guidance(1.0, 0.1, gamma=0.01, standardised=True)
    stretched = (codes * torch.linspace(0.1, 10, 32, dtype=torch.float64) + 5).detach()
    assert term(codes, 0).item() == pytest.approx(term(stretched, 0).item(), rel=1e-3)


def test_the_variants_differ_from_ogae_in_what_they_say():
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


def test_every_network_has_one_number_and_four_values_to_choose_from():
    for method in METHODS.values():
        if method.choice is not None:
            assert len(method.choice.tried) == 4 and method.choice.value in method.choice.tried
            assert np.all(np.diff(method.choice.tried) > 0)
