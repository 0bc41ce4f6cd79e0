from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from voxout.data_manifests.errors import UserError
from voxout.models.encoder.network import LAYERS, PatchAutoEncoder, PatchEncoder, patch_shapes_of
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.settings import EncoderSettings

AXIAL, VOLUME = PatchShape("axial", 5), PatchShape("volume", 3)


def test_the_published_network():
    """Convolutions of 3, 4, 12 and 16 filters, 5x5, 3x3, 3x3 with stride 3, 3x3: 15 -> 11 -> 9 -> 3 -> 1."""
    model = PatchAutoEncoder(1, [PatchShape("axial", 15)], EncoderSettings(latent_size=16, width="paper"))
    kinds = [type(layer) for layer in model.encoder.branches[0]]
    assert kinds == [nn.Conv2d, nn.GELU, nn.BatchNorm2d] * 4
    edges, maps = [], torch.zeros(2, 1, 15, 15)
    for layer in model.encoder.branches[0]:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d):
            edges.append((maps.shape[1], maps.shape[2]))
    assert edges == [(3, 11), (4, 9), (12, 3), (16, 1)]
    weights = sum(p.numel() for p in model.encoder.parameters())
    convolutions = (25 * 1 + 1) * 3 + (9 * 3 + 1) * 4 + (9 * 4 + 1) * 12 + (9 * 12 + 1) * 16
    assert weights == convolutions + 2 * (3 + 4 + 12 + 16)
    kinds = [type(layer) for layer in model.decoder.branches[0]]
    assert kinds == [nn.ConvTranspose2d, nn.GELU, nn.BatchNorm2d] * 3 + [nn.ConvTranspose2d, nn.Sigmoid]
    edges, maps = [], torch.zeros(2, 16, 1, 1)
    for layer in model.decoder.branches[0]:
        maps = layer(maps)
        if isinstance(layer, nn.ConvTranspose2d):
            edges.append((maps.shape[1], maps.shape[2]))
    assert edges == [(12, 3), (4, 9), (3, 11), (1, 15)]


@pytest.mark.parametrize(("width", "norm"), [*product(["paper", "wide"], ["batch", "layer"])])
@pytest.mark.parametrize("size", LAYERS)
def test_every_patch_size_is_encoded_to_one_latent_and_decoded(size, width, norm):
    settings = EncoderSettings(latent_size=7, width=width, norm=norm)
    model = PatchAutoEncoder(2, [PatchShape("sagittal", size)], settings)
    patches = torch.rand(3, 2, size, size)
    latents = model.encoder((patches,))
    assert latents.shape == (3, 7)
    (decoded,) = model.decoder(latents)
    assert decoded.shape == patches.shape
    assert ((decoded > 0) & (decoded < 1)).all()


@pytest.mark.parametrize("size", LAYERS)
def test_every_voxel_of_a_patch_affects_the_latent(size):
    torch.manual_seed(0)
    encoder = PatchEncoder(1, [PatchShape("axial", size)], EncoderSettings(latent_size=8)).eval()
    patch = torch.rand(1, 1, size, size, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder((patch,)).square().sum(), patch)
    assert (gradient != 0).all()


def test_latent_norm_is_the_last_and_the_others_are_inner():
    model = PatchAutoEncoder(1, [PatchShape("axial", 9)], EncoderSettings(latent_size=6))
    assert model.encoder.latent_norm.num_features == 6
    assert len(model.inner_norms()) == 3 + 3
    assert all(norm is not model.encoder.latent_norm for norm in model.inner_norms())


def test_several_patch_shapes_are_combined_into_one_latent():
    torch.manual_seed(0)
    model = PatchAutoEncoder(2, [AXIAL, VOLUME], EncoderSettings(latent_size=6)).eval()
    patches = torch.rand(3, 4, 2, 5, 5), torch.rand(3, 4, 2, 3, 3, 3)
    latents = model.encoder(patches)
    assert latents.shape == (3, 4, 6)
    np.testing.assert_allclose(
        latents[1, 2:3].detach(), model.encoder([p[1, 2:3] for p in patches]).detach(), atol=1e-6
    )
    for number in (0, 1):
        other = [patch + (place == number) for place, patch in enumerate(patches)]
        assert ((model.encoder(other) - latents).abs().amax(dim=-1) > 1e-3).all()
    decoded = model.decoder(latents)
    assert [patch.shape for patch in decoded] == [patch.shape for patch in patches]
    errors = [(one - other).square().mean() for one, other in zip(decoded, patches, strict=True)]
    assert model(patches).item() == pytest.approx(sum(errors).item() / 2)  # equal weights for all shapes
    assert model.encoder.latent_norm is model.encoder.join[-1]
    assert len(model.inner_norms()) == 2 + 2 + 1 + 1


def test_layer_norm_is_per_voxel_and_per_patch():
    model = PatchAutoEncoder(1, [AXIAL], EncoderSettings(latent_size=6, norm="layer"))
    assert model.inner_norms() == []
    first, _, norm = model.encoder.branches[0][:3]
    maps = norm(first(torch.rand(2, 1, 5, 5)))
    np.testing.assert_allclose(maps.mean(dim=1).detach(), 0, atol=1e-5)
    np.testing.assert_allclose(maps.var(dim=1, correction=0).detach(), 1, atol=1e-2)


def test_patch_shapes_in_voxels():
    settings = EncoderSettings(patch_size_mm=(6, 14, 15), planes=("axial", "volume"))
    assert [*map(str, patch_shapes_of(settings, 2.0))] == ["axial 3", "axial 7", "volume 3", "volume 7"]
    assert patch_shapes_of(EncoderSettings(), 2.0) == (VOLUME,)
    assert patch_shapes_of(EncoderSettings(), 5.0) == (VOLUME,)  # on a coarse grid, the smallest size


def test_patch_size_without_a_network():
    with pytest.raises(UserError) as error:
        patch_shapes_of(EncoderSettings(patch_size_mm=(10, 34)), 2.0)
    assert str(error.value) == (
        "models.encoder.patch_size_mm: is 17 voxels at 2 mm spacing, expected one of 6, 10, 14, 18, 22, 26, 30 mm. "
        "Choose one of these sizes."
    )
