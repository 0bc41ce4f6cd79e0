from itertools import product

import numpy as np
import pytest
import torch
from voxout.data_manifests.images.grid import Grid
from voxout.models.encoder import dense_inference
from voxout.models.encoder.dense_inference import encode_densely
from voxout.models.encoder.network import LAYERS, PatchEncoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.settings import EncoderSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (14, 17, 9)


def random_encoder(channels, *patch_shapes, **settings):
    """Encoder whose norms differ from the identity."""
    torch.manual_seed(0)
    patch_shapes = [PatchShape(plane, size) for plane, size in patch_shapes]
    encoder = PatchEncoder(channels, patch_shapes, EncoderSettings(latent_size=6, **settings))
    for layer in encoder.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        if isinstance(layer, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    return encoder.eval()


def scattered_mask():
    """Mask with empty slices, holes, and voxels in the corners of the grid."""
    mask = np.random.default_rng(0).random(SHAPE) < 0.3
    mask[..., 3] = mask[..., 7:] = False
    mask[0, 0, 0] = mask[-1, -1, 6] = True
    return VoxelMask(Grid(SHAPE, np.eye(4)), mask)


def patch_by_patch(encoder, volume, mask):
    centres = torch.from_numpy(mask.locations.astype(np.int64))
    rows = torch.zeros(len(centres), dtype=torch.int64)
    with torch.no_grad():
        return encoder([patch_shape.cut(volume[None], rows, centres) for patch_shape in encoder.patch_shapes])


THREE = ("axial", "coronal", "sagittal")


@pytest.mark.parametrize(
    ("patch_shapes", "settings"),
    [
        *(([("axial", size)], {"width": width}) for size, width in product(LAYERS, ["paper", "wide"])),
        ([("axial", 7)], {"norm": "layer"}),
        *(([(plane, 5)], {}) for plane in THREE[1:]),
        *(([("volume", size)], {}) for size in (3, 5, 7, 11)),  # 11: with a stride
        ([("axial", 3), ("axial", 5), ("axial", 9)], {}),
        ([(plane, 5) for plane in THREE], {"norm": "layer"}),
        ([("sagittal", 7), ("volume", 3)], {}),
    ],
    ids=str,
)
def test_dense_equals_patch_wise(patch_shapes, settings):
    encoder, mask = random_encoder(2, *patch_shapes, **settings), scattered_mask()
    volume = torch.rand(2, *SHAPE)
    dense = encode_densely(encoder, volume, mask)
    expected = patch_by_patch(encoder, volume, mask)
    assert dense.shape == (mask.size, 6)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(dense, expected, atol=2e-6 * max(1.0, scale), rtol=0)


def test_patches_include_voxels_outside_the_mask():
    inside = np.zeros(SHAPE, bool)
    inside[6:9, 7:10, 4] = True
    mask, encoder = VoxelMask(Grid(SHAPE, np.eye(4)), inside), random_encoder(1, ("axial", 9), ("volume", 5))
    volume = torch.rand(1, *SHAPE)
    np.testing.assert_allclose(encode_densely(encoder, volume, mask), patch_by_patch(encoder, volume, mask), atol=5e-6)


@pytest.mark.parametrize("plane", [*THREE, "volume"])
def test_block_size_does_not_matter(monkeypatch, plane):
    encoder, mask, volume = random_encoder(1, (plane, 7), ("axial", 3)), scattered_mask(), torch.rand(1, *SHAPE)
    expected = encode_densely(encoder, volume, mask)
    monkeypatch.setattr(dense_inference, "_CELLS_AT_ONCE", 1)
    monkeypatch.setattr(dense_inference, "_VOXELS_AT_ONCE", 7)
    np.testing.assert_allclose(encode_densely(encoder, volume, mask), expected, atol=1e-6)


def test_half_precision_volumes_and_train_mode():
    """Half-precision volumes are accepted, and the batch-norm statistics do not change."""
    encoder, mask = random_encoder(1, ("axial", 5)), scattered_mask()
    volume = torch.rand(1, *SHAPE).half()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    latents = encode_densely(encoder.train(), volume, mask)
    np.testing.assert_allclose(latents, patch_by_patch(encoder, volume.float(), mask), atol=5e-6)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_wrong_volume():
    with pytest.raises(ValueError, match=r"volume \(1, 3, 3, 3\), expected \(2, 14, 17, 9\)"):
        encode_densely(random_encoder(2, ("axial", 5)), torch.zeros(1, 3, 3, 3), scattered_mask())


def test_inferer_gives_the_latents_as_maps():
    from monai.data.meta_tensor import MetaTensor
    from voxout.models.encoder.inferer import DenseInferer

    encoder, mask = random_encoder(2, ("axial", 5)), scattered_mask()
    batch = MetaTensor(torch.rand(2, 2, *SHAPE), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    maps = DenseInferer(mask)(batch, encoder)
    assert isinstance(maps, MetaTensor) and torch.equal(maps.affine, batch.affine)
    assert maps.shape == (2, 6, *SHAPE)
    for volume, latents in zip(batch.as_tensor(), maps.numpy(), strict=True):
        np.testing.assert_array_equal(mask.transform(latents).T, encode_densely(encoder, volume, mask))
        assert not latents[:, ~mask.brain_mask].any()
    plain = DenseInferer(mask)(batch.as_tensor(), encoder)
    assert type(plain) is torch.Tensor and torch.equal(plain, maps.as_tensor())
