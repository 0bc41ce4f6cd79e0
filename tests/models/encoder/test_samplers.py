import numpy as np
import pytest
import torch
from voxout.models.encoder.edited_patches import EditedPatches
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.encoder.samplers import ColocatedPatches, ContrastPatches, MixedPatches, controls_at_voxels

SHAPE = (7, 8, 5)
SINGLE_VOXEL = (PatchShape("axial", 1),)


def numbered(subjects=4, channels=2):
    """Volumes in which every value is unique to subject, channel and voxel."""
    volumes = np.arange(subjects * channels * np.prod(SHAPE)).reshape(subjects, channels, *SHAPE)
    return torch.from_numpy(volumes.astype(np.float32))


EVERYWHERE = np.ones((4, *SHAPE), bool)
VOXELS = np.array([[1, 2, 0], [3, 3, 2], [6, 7, 4], [2, 5, 1], [4, 1, 3]])


def mixed(seed=3, rows=(0, 2), inside=EVERYWHERE):
    return MixedPatches(numbered(), inside, np.array(rows), VOXELS, SINGLE_VOXEL, 40, seed)


def colocated(n_voxels=3, n_subjects=3, rows=(0, 1, 3), seed=3, inside=EVERYWHERE, voxels=VOXELS):
    return ColocatedPatches(numbered(), inside, np.array(rows), voxels, SINGLE_VOXEL, n_voxels, n_subjects, seed)


def origins(patches):
    """(subject, voxel) of 1x1 patches, computed from their values."""
    value = patches[..., 0, 0, 0].numpy().astype(int)
    return value // (2 * np.prod(SHAPE)), value % np.prod(SHAPE)


def places():
    return {int(np.ravel_multi_index(tuple(place), SHAPE)) for place in VOXELS}


def test_mixed_batches_draw_the_given_subjects_and_voxels():
    subject, place = origins(mixed()[0][0])
    assert set(subject) == {0, 2}
    assert set(place) == places()


def test_colocated_batches_hold_each_subject_once_per_voxel():
    (patches,) = colocated()[0]
    assert patches.shape == (3, 3, 2, 1, 1)
    subject, place = origins(patches)
    assert (np.sort(subject, axis=1) == [0, 1, 3]).all()
    assert (place == place[:, :1]).all()
    assert len(set(place[:, 0])) == 3


def test_order_of_controls_differs_between_voxels():
    firsts = {int(origins(colocated()[step][0])[0][b, 0]) for step in range(20) for b in range(3)}
    assert firsts == {0, 1, 3}


def test_subset_of_the_subjects():
    subject, _ = origins(colocated(n_subjects=2)[1][0])
    assert all(len(set(row)) == 2 for row in subject)


def incomplete_masks():
    """Brain masks without the first two voxels (subject 0), the third (subject 1), and all voxels (subject 2)."""
    inside = EVERYWHERE.copy()
    inside[0][tuple(VOXELS[:2].T)] = inside[1][tuple(VOXELS[2])] = inside[2] = False
    return inside


def test_patches_are_inside_the_brain_mask_of_their_subject():
    inside = incomplete_masks()
    subject, place = origins(mixed(rows=(0, 1, 2), inside=inside)[0][0])
    assert set(subject) == {0, 1} and set(place) == places()
    assert inside.reshape(4, -1)[subject, place].all()
    for step in range(10):
        subject, place = origins(colocated(n_subjects=2, inside=inside)[step][0])
        assert inside.reshape(4, -1)[subject, place].all()
        assert all(len(set(row)) == 2 for row in subject)


def contrasted(seed=3, n_subjects=3, is_edited=(True, False, True, True, False), inside=EVERYWHERE):
    """Sampler of edits of row 3 (index 2) at three voxels, and of row 0 at two; edited patches hold their number."""
    patches = (torch.arange(5.0).half()[:, None, None, None].expand(5, 2, 1, 1),)
    edited = EditedPatches(patches, VOXELS, np.array([2, 2, 2, 0, 0]), np.array(is_edited))
    rows = np.array([0, 1, 3])
    return ContrastPatches(numbered(), inside, rows, edited, SINGLE_VOXEL, 12, n_subjects, seed)


@pytest.mark.parametrize("n_subjects", [2, 3])
def test_contrast_batches_hold_the_edited_patch_and_healthy_ones_at_its_voxel(n_subjects):
    for step in range(5):
        batch = contrasted(n_subjects=n_subjects)[step]
        number = batch.drawn[0][:, 0, 0, 0].numpy().astype(int)
        subject, place = origins(batch.healthy[0])
        expected = np.ravel_multi_index(tuple(VOXELS[number].T), SHAPE)
        assert (place == expected[:, None]).all()
        assert (subject[:, -1] == np.where(number < 3, 3, 0)).all()
        assert all(len(set(row)) == n_subjects for row in subject)
        np.testing.assert_array_equal(batch.is_edited, np.array([True, False, True, True, False])[number])
        assert (~batch.is_edited).sum() == 2


def test_contrast_batches_draw_controls_inside_their_brains_and_may_have_no_shams():
    inside = EVERYWHERE.copy()
    inside[1] = False
    batch = contrasted(n_subjects=2, is_edited=[True] * 5, inside=inside)[0]
    assert batch.is_edited.all()
    subject, _ = origins(batch.healthy[0])
    assert set(subject.ravel()) == {0, 3}


def test_controls_at_voxels():
    counts = controls_at_voxels(incomplete_masks(), np.array([0, 1, 3]), VOXELS)
    assert counts.tolist() == [2, 2, 2, 3, 3]


def test_more_voxels_per_batch_than_available():
    assert colocated(n_voxels=50)[0][0].shape[:2] == (50, 3)


def test_a_contrast_batch_is_a_function_of_seed_and_step():
    one, same, other = contrasted(seed=5)[7], contrasted(seed=5)[7], contrasted(seed=5)[8]
    assert torch.equal(one.healthy[0], same.healthy[0]) and torch.equal(one.drawn[0], same.drawn[0])
    assert not torch.equal(one.healthy[0], other.healthy[0])


@pytest.mark.parametrize("make", [mixed, colocated])
def test_a_batch_is_a_function_of_seed_and_step(make):
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert torch.equal(make(seed=5)[7][0], make(seed=5)[7][0])
    assert not torch.equal(make(seed=5)[7][0], make(seed=5)[8][0])
    assert not torch.equal(make(seed=5)[7][0], make(seed=6)[7][0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def test_all_patch_shapes_of_a_batch_are_at_the_same_voxels():
    patch_shapes = (PatchShape("volume", 3), PatchShape("coronal", 5))
    two = ColocatedPatches(numbered(), EVERYWHERE, np.arange(4), VOXELS, patch_shapes, 3, 4, 3)
    cubes, planes = two[0]
    assert cubes.shape == (3, 4, 2, 3, 3, 3) and planes.shape == (3, 4, 2, 5, 5)
    assert torch.equal(cubes[..., 1, 1, 1], planes[..., 2, 2])


def test_they_are_datasets_of_batches():
    """Two processes of a distributed training draw, together, the batches of one process."""
    from torch.utils.data import DataLoader

    patches = colocated()
    loaders = [DataLoader(patches, batch_size=None, sampler=range(rank, 6, 2)) for rank in range(2)]
    drawn = [batch for pair in zip(*loaders, strict=True) for (batch,) in pair]
    assert len(drawn) == 6 and all(torch.equal(batch, patches[step][0]) for step, batch in enumerate(drawn))
