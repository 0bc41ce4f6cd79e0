import numpy as np
import pytest
import torch
from voxout.data_manifests.grid import Grid
from voxout.models import dense_encoding
from voxout.models.colocated_patches import gather_patches
from voxout.models.dense_encoding import encode_densely
from voxout.models.encoder import PLANS, PatchEncoder
from voxout.preprocessing.patch_grid import PatchGrid

SHAPE = (14, 17, 9)


def trained_looking(channels, size, width, seed=0):
    """An encoder whose batch norms are far from the identity."""
    torch.manual_seed(seed)
    encoder = PatchEncoder(channels, size, 6, width)
    for layer in encoder.layers:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    return encoder.eval()


def scattered_grid():
    """A mask with a gap between its slices, holes, and locations in the corners of the grid."""
    mask = np.random.default_rng(0).random(SHAPE) < 0.3
    mask[..., 3] = mask[..., 7:] = False
    mask[0, 0, 0] = mask[-1, -1, 6] = True
    return PatchGrid(Grid(SHAPE, np.eye(4)), mask)


def patch_by_patch(encoder, volume, grid):
    centres = torch.from_numpy(grid.locations.astype(np.int64))
    rows = torch.zeros(len(centres), dtype=torch.int64)
    with torch.no_grad():
        return encoder(gather_patches(volume[None], rows, centres, encoder.patch_size_vox))


@pytest.mark.parametrize("width", ["paper", "wide"])
@pytest.mark.parametrize("size", PLANS)
def test_equals_the_patch_encoder(size, width):
    encoder, grid = trained_looking(2, size, width), scattered_grid()
    volume = torch.rand(2, *SHAPE)
    dense = encode_densely(encoder, volume, grid)
    expected = patch_by_patch(encoder, volume, grid)
    assert dense.shape == (grid.size, 6)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(dense, expected, atol=2e-6 * max(1.0, scale), rtol=0)


def test_a_mask_inside_the_grid_sees_what_lies_around_it():
    mask = np.zeros(SHAPE, bool)
    mask[6:9, 7:10, 4] = True
    grid, encoder = PatchGrid(Grid(SHAPE, np.eye(4)), mask), trained_looking(1, 9, "wide")
    volume = torch.rand(1, *SHAPE)
    np.testing.assert_allclose(encode_densely(encoder, volume, grid), patch_by_patch(encoder, volume, grid), atol=5e-6)


def test_slices_at_a_time_do_not_matter(monkeypatch):
    encoder, grid, volume = trained_looking(1, 7, "wide"), scattered_grid(), torch.rand(1, *SHAPE)
    whole = encode_densely(encoder, volume, grid)
    monkeypatch.setattr(dense_encoding, "_CELLS_AT_ONCE", 1)
    np.testing.assert_allclose(encode_densely(encoder, volume, grid), whole, atol=1e-6)


def test_stored_half_precision_and_train_mode():
    """Half-precision volumes are read as they are, and batch norm never sees a slice."""
    encoder, grid = trained_looking(1, 5, "wide"), scattered_grid()
    volume = torch.rand(1, *SHAPE).half()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    codes = encode_densely(encoder.train(), volume, grid)
    np.testing.assert_allclose(codes, patch_by_patch(encoder, volume.float(), grid), atol=5e-6)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_wrong_volume():
    with pytest.raises(ValueError, match=r"volume \(1, 3, 3, 3\), expected \(2, 14, 17, 9\)"):
        encode_densely(PatchEncoder(2, 5, 4, "wide"), torch.zeros(1, 3, 3, 3), scattered_grid())
