import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.preprocessing.patches.voxel_mask import VoxelMask, patch_size_vox


def voxel_mask_of(mask, spacing=2.0):
    return VoxelMask(Grid(mask.shape, np.diag([spacing, spacing, spacing, 1.0])), mask)


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)).filter(np.any)


def test_small_mask():
    mask = np.zeros((2, 2, 3), bool)
    mask[0, 1, 2] = mask[1, 0, 0] = mask[1, 0, 2] = True
    voxel_mask = voxel_mask_of(mask)
    assert voxel_mask.size == 3
    assert voxel_mask.locations.dtype == np.int32
    assert voxel_mask.locations.tolist() == [[0, 1, 2], [1, 0, 0], [1, 0, 2]]
    assert voxel_mask.transform(np.arange(12).reshape(2, 2, 3)).tolist() == [5, 6, 8]
    assert voxel_mask.inverse_transform(np.array([7.0, 8.0, 9.0]), fill=-1.0).tolist() == [
        [[-1, -1, -1], [-1, -1, 7]],
        [[8, -1, 9], [-1, -1, -1]],
    ]


@given(masks)
def test_voxels_are_in_the_order_of_nonzero(mask):
    np.testing.assert_array_equal(voxel_mask_of(mask).locations.T, np.nonzero(mask))


@given(masks, st.integers(0, 3), st.floats(-5, 5))
def test_transform_inverts_inverse_transform(mask, channels, fill):
    voxel_mask = voxel_mask_of(mask)
    lead = (channels,) if channels else ()
    values = np.random.default_rng(0).normal(size=(*lead, voxel_mask.size))
    volume = voxel_mask.inverse_transform(values, fill=fill)
    assert volume.shape == (*lead, *mask.shape)
    np.testing.assert_array_equal(voxel_mask.transform(volume), values)
    assert (volume[..., ~mask] == fill).all()


def test_errors_for_wrong_shapes():
    voxel_mask = voxel_mask_of(np.ones((2, 3, 4), bool))
    with pytest.raises(ValueError, match=r"volume has shape \(4, 3, 2\), expected"):
        voxel_mask.transform(np.zeros((4, 3, 2)))
    with pytest.raises(ValueError, match=r"values have shape \(23,\), expected \(..., P\) with 24 voxels"):
        voxel_mask.inverse_transform(np.zeros(23))
    with pytest.raises(UserError, match="Template brain mask: has .* Resample it"):
        VoxelMask(voxel_mask.grid, np.ones((2, 3, 5), bool))
    with pytest.raises(UserError, match="is empty, expected at least one voxel"):
        voxel_mask_of(np.zeros((2, 2, 2), bool))


def test_hash_depends_on_mask_and_grid():
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 2, 3] = True
    first = voxel_mask_of(mask).mask_hash
    assert first == voxel_mask_of(mask.copy()).mask_hash
    assert first != voxel_mask_of(mask, spacing=1.0).mask_hash
    moved = np.roll(mask, 1, axis=0)
    assert first != voxel_mask_of(moved).mask_hash


def test_hash_is_stable_in_single_precision():
    mask = np.ones((4, 4, 4), bool)
    affine = np.diag([0.8700001, 0.87, 1.0, 1.0])
    affine[:3, 3] = -98.123401, 0.0, -0.0
    stored = Grid(mask.shape, affine.astype(np.float32).astype(float))
    assert VoxelMask(Grid(mask.shape, affine), mask).mask_hash == VoxelMask(stored, mask).mask_hash


@pytest.mark.parametrize(
    ("mm", "spacing", "voxels"),
    [(10, 2, 5), (18, 2, 9), (15, 1, 15), (10, 1, 11), (9.9, 1, 9), (30, 2, 15), (1, 2, 1), (2, 2, 1), (5.9, 2, 3)],
)
def test_patch_size_is_the_nearest_odd_number(mm, spacing, voxels):
    assert patch_size_vox(mm, spacing) == voxels


@given(st.floats(0.1, 100), st.floats(0.5, 5))
def test_patch_size_is_odd_and_close(mm, spacing):
    size = patch_size_vox(mm, spacing)
    assert size % 2 == 1
    assert size == 1 or abs(size * spacing - mm) <= spacing * (1 + 1e-9)


def test_the_cropped_mask_has_the_same_voxels_at_the_same_places():
    mask = np.random.default_rng(0).random((9, 8, 7)) < 0.05
    full = VoxelMask(Grid(mask.shape, np.array([[2.0, 0.5, 0, -3], [0, 3, 0, 4], [0, 0, -1, 5], [0, 0, 0, 1]])), mask)
    box = full.cropped
    assert box.size == full.size and (box.brain_mask.any(axis=(1, 2))[[0, -1]]).all()
    places = [m.locations @ m.grid.affine[:3, :3].T + m.grid.affine[:3, 3] for m in (full, box)]
    np.testing.assert_allclose(*places)
    np.testing.assert_array_equal(box.transform(box.inverse_transform(np.arange(box.size))), np.arange(full.size))


def test_blurred_agrees_with_a_gaussian_filter_of_the_volume():
    random = np.random.default_rng(0)
    mask = np.zeros((12, 11, 10), bool)
    mask[2:9, 3:8, 1:9] = random.random((7, 5, 8)) < 0.7
    grid = VoxelMask(Grid(mask.shape, np.diag([2.0, 3, 1, 1])), mask)
    values = random.normal(size=(2, grid.size))
    expected = [
        grid.transform(ndimage.gaussian_filter(grid.inverse_transform(row), (1.5, 1, 3), mode="constant", truncate=2))
        for row in values
    ]
    np.testing.assert_allclose(grid.blurred(values, 3.0, truncate=2), expected, atol=1e-12)
