import numpy as np
import pytest
from voxout.data_manifests.errors import SubjectError, UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.features.feature_store import LatentStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask


def grid_of(n_locations):
    mask = np.zeros((5, 5, 5), bool)
    mask.flat[:n_locations] = True
    return VoxelMask(Grid(mask.shape, np.eye(4)), mask)


@pytest.fixture
def filled(tmp_path):
    """A folder with the codes of three subjects, and these codes."""
    latents = np.random.default_rng(0).normal(size=(3, 40, 4)).astype(np.float16)
    store = LatentStore.create(tmp_path, grid_of(40), 4)
    for key, own in zip(("a", "b", "c"), latents, strict=True):
        store.write(key, own.astype(np.float32))
    return tmp_path, latents


def test_blocks_subjects_and_order(filled):
    folder, latents = filled
    store = LatentStore.open(folder, ("c", "a"), grid_of(40))
    assert store.shape == (2, 40, 4)
    assert store[:, 3:11].dtype == np.float32
    np.testing.assert_array_equal(store[:, 3:11], latents[[2, 0], 3:11])
    np.testing.assert_array_equal(store[:, 30:99], latents[[2, 0], 30:])
    np.testing.assert_array_equal(store[:, :], latents[[2, 0]])
    assert store[:, 7:7].shape == (2, 0, 4)
    np.testing.assert_array_equal(store.subject("b"), latents[1])
    assert np.load(folder / "a.npy", allow_pickle=False).dtype == np.float16


def test_only_blocks_can_be_read(filled):
    store = LatentStore.open(filled[0], ("a",))
    for index in ((0, slice(0, 3)), (slice(None), 3), (slice(None), slice(0, 8, 2)), (slice(0, 1), slice(0, 3))):
        with pytest.raises(IndexError, match="only latents"):
            store[index]


def test_create_again_keeps_what_is_there(filled):
    folder, latents = filled
    again = LatentStore.create(folder, grid_of(40), 4)
    np.testing.assert_array_equal(again.subject("b"), latents[1])


def test_other_locations_or_code_size(filled):
    folder, _ = filled
    with pytest.raises(UserError, match=r"holds codes of 4 numbers at 40 locations .* expected 4 at 41 .* Delete"):
        LatentStore.create(folder, grid_of(41), 4)
    with pytest.raises(UserError, match="expected 5 at 40"):
        LatentStore.create(folder, grid_of(40), 5)
    with pytest.raises(UserError, match="belong to the locations of mask .* Encode the subjects again"):
        LatentStore.open(folder, ("a",), grid_of(41))


def test_what_is_not_there(filled, tmp_path):
    with pytest.raises(UserError, match="no codes of x, y"):
        LatentStore.open(filled[0], ("a", "x", "y"))
    with pytest.raises(UserError, match="no codes of x"):
        LatentStore.open(filled[0], ("a",)).subject("x")
    with pytest.raises(UserError, match="holds no codes. Run the stage fit first"):
        LatentStore.open(tmp_path / "elsewhere", ("a",))


def test_a_file_of_another_shape(filled):
    folder, _ = filled
    np.save(folder / "b.npy", np.zeros((39, 4), np.float16))
    with pytest.raises(UserError, match=r"b: its codes have the shape \(39, 4\), expected \(40, 4\)"):
        LatentStore.open(folder, ("a", "b"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e5])
def test_codes_that_float16_cannot_hold(filled, bad):
    folder, latents = filled
    own = latents[0].astype(np.float32)
    own[[3, 3, 8], [0, 1, 2]] = bad
    with pytest.raises(SubjectError, match="a: its codes are not finite in float16 at 2 of 40 locations"):
        LatentStore.open(folder, ("a",)).write("a", own)
    np.testing.assert_array_equal(LatentStore.open(folder, ("a",))[:, :], latents[:1])
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy", "b.npy", "c.npy", "latents.json"]


def test_whoever_is_missing_somewhere_is_nan_there(filled):
    folder, latents = filled
    own, there = latents[0].copy(), np.ones(40, bool)
    own[7:9], there[7:9] = np.nan, False
    store = LatentStore.open(folder, ("a", "b"))
    store.write("a", own, there)
    np.testing.assert_array_equal(store[:, 5:12], np.stack([own, latents[1]])[:, 5:12])
    np.testing.assert_array_equal(store.subject("a"), own)
    own[3] = np.nan
    with pytest.raises(SubjectError, match="not finite in float16 at 1 of 40"):
        store.write("a", own, there)


def test_wrong_shape_to_write(filled):
    with pytest.raises(ValueError, match=r"codes \(4, 40\), expected \(40, 4\)"):
        LatentStore.open(filled[0], ()).write("a", np.zeros((4, 40)))
