import numpy as np
import pytest
import torch
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.encoder.samplers import ColocatedPatches, MixedPatches, controls_at_voxels

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


def test_controls_at_voxels():
    counts = controls_at_voxels(incomplete_masks(), np.array([0, 1, 3]), VOXELS)
    assert counts.tolist() == [2, 2, 2, 3, 3]


def test_more_voxels_per_batch_than_available():
    assert colocated(n_voxels=50)[0][0].shape[:2] == (50, 3)


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
