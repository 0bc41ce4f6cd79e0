"""The contrast loss against a slow implementation and finite differences."""

import numpy as np
import pytest
import torch
from voxout.models.encoder.contrast_loss import ContrastLoss, log_distance


def latents(seed=0, voxels=5, support=8, healthy=3, size=4):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(size, size))
    shapes = (voxels, support, size), (voxels, healthy, size), (voxels, size)
    support_, healthy_, drawn = (torch.from_numpy(random.normal(size=shape) @ mixing) for shape in shapes)
    return support_, healthy_, drawn + 2, torch.tensor([True, True, False, True, False])[:voxels]


def loss_of(slope=2.0, offset=-0.3):
    loss = ContrastLoss().double()
    loss.load_state_dict(
        {"slope": torch.tensor(slope, dtype=torch.double), "offset": torch.tensor(offset, dtype=torch.double)}
    )
    return loss


def slow_distances(support, others):
    """One voxel and one latent at a time, with an explicit inverse."""
    covariances = np.stack([np.cov(own.T) for own in support])
    pooled = covariances.mean(axis=0)
    size = len(pooled)
    distances = np.zeros(others.shape[:2])
    for voxel, covariance in enumerate(covariances):
        mixed = 0.5 * covariance + 0.5 * pooled + 0.01 * np.trace(pooled) / size * np.eye(size)
        for number, latent in enumerate(others[voxel]):
            difference = latent - support[voxel].mean(axis=0)
            distances[voxel, number] = np.log(difference @ np.linalg.inv(mixed) @ difference / size + 1e-3)
    return distances


def test_agrees_with_a_slow_implementation():
    support, healthy, drawn, is_edited = latents()
    others = torch.cat([healthy, drawn[:, None]], dim=1)
    distances = slow_distances(support.numpy(), others.numpy())
    np.testing.assert_allclose(log_distance(support, others), distances, rtol=1e-10)
    probability = 1 / (1 + np.exp(-(2.0 * (distances - 1) - 0.3)))
    edited = probability[is_edited.numpy(), -1]
    unedited = [*probability[:, :-1].ravel(), *probability[~is_edited.numpy(), -1]]
    expected = -0.5 * np.mean(np.log(edited)) - 0.5 * np.mean(np.log1p(-np.array(unedited)))
    assert loss_of()(support, healthy, drawn, is_edited).item() == pytest.approx(expected, rel=1e-10)


def test_gradients_agree_with_finite_differences():
    *parts, is_edited = latents()
    loss = loss_of()

    def of(support, healthy, drawn, slope, offset):
        values = {"slope": slope, "offset": offset}
        return torch.func.functional_call(loss, values, (support, healthy, drawn, is_edited))

    learnt = [parameter.detach().clone() for parameter in loss.parameters()]
    assert torch.autograd.gradcheck(of, [part.requires_grad_() for part in (*parts, *learnt)])


def test_healthy_and_edited_latents_have_equal_weight():
    support, healthy, drawn, is_edited = latents()
    is_edited[:] = True
    once = loss_of()(support, healthy, drawn, is_edited)
    assert torch.allclose(loss_of()(support, healthy.repeat(1, 4, 1), drawn, is_edited), once)


def test_the_scale_of_the_latents_does_not_matter():
    support, healthy, drawn, is_edited = latents()
    once = loss_of()(support, healthy, drawn, is_edited)
    for scale in (1e-4, 1e3):
        scaled = loss_of()(scale * support + 5, scale * healthy + 5, scale * drawn + 5, is_edited)
        assert torch.allclose(scaled, once)


def test_latents_in_float32_and_degenerate_ones():
    support, healthy, drawn, is_edited = latents()
    single = ContrastLoss()(support.float(), healthy.float(), drawn.float(), is_edited)
    assert single.item() == pytest.approx(ContrastLoss()(support, healthy, drawn, is_edited).item(), rel=1e-5)
    same = torch.ones(5, 8, 4)
    assert ContrastLoss()(same, same[:, :3], same[:, 0], is_edited).isfinite()
    drawn[0, 0] = torch.nan
    support[1, 0, 0] = torch.inf
    assert ContrastLoss()(support, healthy, drawn, is_edited).isnan()
