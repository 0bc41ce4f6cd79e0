import numpy as np
import pytest
from voxout.data_manifests.errors import SubjectError, UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.features.feature_store import LatentStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask


def mask_of(n_voxels):
    mask = np.zeros((5, 5, 5), bool)
    mask.flat[:n_voxels] = True
    return VoxelMask(Grid(mask.shape, np.eye(4)), mask)


@pytest.fixture
def filled(tmp_path):
    """A folder with the latents of three subjects, and the latents."""
    latents = np.random.default_rng(0).normal(size=(3, 40, 4)).astype(np.float16)
    store = LatentStore.create(tmp_path, mask_of(40), 4)
    for key, own in zip(("a", "b", "c"), latents, strict=True):
        store.write(key, own.astype(np.float32))
    return tmp_path, latents


def test_blocks_subjects_and_order(filled):
    folder, latents = filled
    store = LatentStore.open(folder, ("c", "a"), mask_of(40))
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


def test_create_keeps_existing_latents(filled):
    folder, latents = filled
    again = LatentStore.create(folder, mask_of(40), 4)
    np.testing.assert_array_equal(again.subject("b"), latents[1])


def test_another_mask_or_latent_size_is_refused(filled):
    folder, _ = filled
    with pytest.raises(
        UserError, match=r"holds latents of size 4 at 40 voxels .* expected size 4 at 41 voxels .* Delete"
    ):
        LatentStore.create(folder, mask_of(41), 4)
    with pytest.raises(UserError, match="expected size 5 at 40"):
        LatentStore.create(folder, mask_of(40), 5)
    with pytest.raises(UserError, match="latents belong to mask .*, expected .* Encode the subjects again"):
        LatentStore.open(folder, ("a",), mask_of(41))


def test_missing_subjects_or_stores_are_refused(filled, tmp_path):
    with pytest.raises(UserError, match="no latents of x, y"):
        LatentStore.open(filled[0], ("a", "x", "y"))
    with pytest.raises(UserError, match="no latents of x"):
        LatentStore.open(filled[0], ("a",)).subject("x")
    with pytest.raises(UserError, match="holds no latents. Run the stage fit first"):
        LatentStore.open(tmp_path / "elsewhere", ("a",))


def test_a_file_of_another_shape_is_refused(filled):
    folder, _ = filled
    np.save(folder / "b.npy", np.zeros((39, 4), np.float16))
    with pytest.raises(UserError, match=r"b: its latents have shape \(39, 4\), float16, expected \(40, 4\)"):
        LatentStore.open(folder, ("a", "b"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_values_come_back_whatever_their_order_in_memory(filled, order):
    """Also a file of before, in Fortran order, and when its header has been read already."""
    folder, _ = filled
    values = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float16)
    LatentStore.create(folder, mask_of(40), 4).write("written", np.asarray(values, order=order))
    np.save(folder / "saved.npy", np.asarray(values, order=order))
    store = LatentStore.open(folder, ("written", "saved"))
    for _ in range(2):
        np.testing.assert_array_equal(store[:, 5:9], np.stack([values[5:9]] * 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e5])
def test_latents_that_are_not_finite_in_float16_are_refused(filled, bad):
    folder, latents = filled
    own = latents[0].astype(np.float32)
    own[[3, 3, 8], [0, 1, 2]] = bad
    with pytest.raises(SubjectError, match="a: its latents are not finite in float16 at 2 of 40 voxels"):
        LatentStore.open(folder, ("a",)).write("a", own)
    np.testing.assert_array_equal(LatentStore.open(folder, ("a",))[:, :], latents[:1])
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy", "b.npy", "c.npy", "latents.json"]


def test_missing_voxels_are_nan(filled):
    folder, latents = filled
    own, available = latents[0].copy(), np.ones(40, bool)
    own[7:9], available[7:9] = np.nan, False
    store = LatentStore.open(folder, ("a", "b"))
    store.write("a", own, available)
    np.testing.assert_array_equal(store[:, 5:12], np.stack([own, latents[1]])[:, 5:12])
    np.testing.assert_array_equal(store.subject("a"), own)
    own[3] = np.nan
    with pytest.raises(SubjectError, match="not finite in float16 at 1 of 40"):
        store.write("a", own, available)


def test_latents_of_the_wrong_shape_are_not_written(filled):
    with pytest.raises(ValueError, match=r"latents \(4, 40\), expected \(40, 4\)"):
        LatentStore.open(filled[0], ()).write("a", np.zeros((4, 40)))
