import pytest
import torch
from torch import nn
from voxout.data_manifests.errors import UserError
from voxout.models.encoder import PLANS, PatchAutoEncoder, PatchEncoder, plan_of


def test_the_published_network():
    """Convolutions of 3, 4, 12 and 16 filters, 5x5, 3x3, 3x3 with stride 3, 3x3: 15 -> 11 -> 9 -> 3 -> 1."""
    model = PatchAutoEncoder(1, 15, 16, "paper")
    kinds = [type(layer) for layer in model.encoder.layers]
    assert kinds == [nn.Conv2d, nn.GELU, nn.BatchNorm2d] * 4
    edges, maps = [], torch.zeros(2, 1, 15, 15)
    for layer in model.encoder.layers:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d):
            edges.append((maps.shape[1], maps.shape[2]))
    assert edges == [(3, 11), (4, 9), (12, 3), (16, 1)]
    weights = sum(p.numel() for p in model.encoder.parameters())
    convolutions = (25 * 1 + 1) * 3 + (9 * 3 + 1) * 4 + (9 * 4 + 1) * 12 + (9 * 12 + 1) * 16
    assert weights == convolutions + 2 * (3 + 4 + 12 + 16)
    kinds = [type(layer) for layer in model.decoder.layers]
    assert kinds == [nn.ConvTranspose2d, nn.GELU, nn.BatchNorm2d] * 3 + [nn.ConvTranspose2d, nn.Sigmoid]
    edges, maps = [], torch.zeros(2, 16, 1, 1)
    for layer in model.decoder.layers:
        maps = layer(maps)
        if isinstance(layer, nn.ConvTranspose2d):
            edges.append((maps.shape[1], maps.shape[2]))
    assert edges == [(12, 3), (4, 9), (3, 11), (1, 15)]


@pytest.mark.parametrize("width", ["paper", "wide"])
@pytest.mark.parametrize("size", PLANS)
def test_every_plan_ends_at_one_code_and_comes_back(size, width):
    model = PatchAutoEncoder(2, size, 7, width)
    patches = torch.rand(3, 2, size, size)
    assert model.encoder(patches).shape == (3, 7)
    rebuilt = model(patches)
    assert rebuilt.shape == patches.shape
    assert ((rebuilt > 0) & (rebuilt < 1)).all()


@pytest.mark.parametrize("size", PLANS)
def test_every_pixel_of_a_patch_reaches_the_code(size):
    torch.manual_seed(0)
    encoder = PatchEncoder(1, size, 8, "wide").eval()
    patch = torch.rand(1, 1, size, size, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(patch).square().sum(), patch)
    assert (gradient != 0).all()


def test_code_norm_is_the_last_and_the_others_are_inner():
    model = PatchAutoEncoder(1, 9, 6, "wide")
    assert model.encoder.code_norm.num_features == 6
    assert len(model.inner_norms()) == 3 + 3
    assert all(norm is not model.encoder.code_norm for norm in model.inner_norms())


def test_patch_size_without_a_network():
    assert len(plan_of(5, 2.0)) == 2
    with pytest.raises(UserError) as error:
        plan_of(17, 2.0)
    assert str(error.value) == (
        "models.encoder.patch_size_mm: comes to 17 voxels of 2 mm, for which there is no network. At this spacing "
        "choose one of 10, 14, 18, 22, 26, 30 mm."
    )
