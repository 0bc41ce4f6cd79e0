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


def trained_looking(channels, *patch_shapes, **settings):
    """An encoder whose norms are far from the identity."""
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


def scattered_grid():
    """A mask with a gap between its slices, holes, and locations in the corners of the grid."""
    mask = np.random.default_rng(0).random(SHAPE) < 0.3
    mask[..., 3] = mask[..., 7:] = False
    mask[0, 0, 0] = mask[-1, -1, 6] = True
    return VoxelMask(Grid(SHAPE, np.eye(4)), mask)


def patch_by_patch(encoder, volume, grid):
    centres = torch.from_numpy(grid.locations.astype(np.int64))
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
def test_equals_the_patch_encoder(patch_shapes, settings):
    encoder, grid = trained_looking(2, *patch_shapes, **settings), scattered_grid()
    volume = torch.rand(2, *SHAPE)
    dense = encode_densely(encoder, volume, grid)
    expected = patch_by_patch(encoder, volume, grid)
    assert dense.shape == (grid.size, 6)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(dense, expected, atol=2e-6 * max(1.0, scale), rtol=0)


def test_a_mask_inside_the_grid_sees_what_lies_around_it():
    mask = np.zeros(SHAPE, bool)
    mask[6:9, 7:10, 4] = True
    grid, encoder = VoxelMask(Grid(SHAPE, np.eye(4)), mask), trained_looking(1, ("axial", 9), ("volume", 5))
    volume = torch.rand(1, *SHAPE)
    np.testing.assert_allclose(encode_densely(encoder, volume, grid), patch_by_patch(encoder, volume, grid), atol=5e-6)


@pytest.mark.parametrize("plane", [*THREE, "volume"])
def test_slices_at_a_time_do_not_matter(monkeypatch, plane):
    encoder, grid, volume = trained_looking(1, (plane, 7), ("axial", 3)), scattered_grid(), torch.rand(1, *SHAPE)
    whole = encode_densely(encoder, volume, grid)
    monkeypatch.setattr(dense_inference, "_CELLS_AT_ONCE", 1)
    monkeypatch.setattr(dense_inference, "_LOCATIONS_AT_ONCE", 7)
    np.testing.assert_allclose(encode_densely(encoder, volume, grid), whole, atol=1e-6)


def test_stored_half_precision_and_train_mode():
    """Half-precision volumes are read as they are, and batch norm never sees a slice."""
    encoder, grid = trained_looking(1, ("axial", 5)), scattered_grid()
    volume = torch.rand(1, *SHAPE).half()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    latents = encode_densely(encoder.train(), volume, grid)
    np.testing.assert_allclose(latents, patch_by_patch(encoder, volume.float(), grid), atol=5e-6)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_wrong_volume():
    with pytest.raises(ValueError, match=r"volume \(1, 3, 3, 3\), expected \(2, 14, 17, 9\)"):
        encode_densely(trained_looking(2, ("axial", 5)), torch.zeros(1, 3, 3, 3), scattered_grid())
