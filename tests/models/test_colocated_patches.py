import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.models.colocated_patches import ColocatedPatches, MixedPatches, gather_patches

SHAPE = (7, 8, 5)


def numbered(subjects=4, channels=2):
    """Volumes in which every voxel tells subject, channel and place."""
    volumes = np.arange(subjects * channels * np.prod(SHAPE)).reshape(subjects, channels, *SHAPE)
    return torch.from_numpy(volumes.astype(np.float32))


def slow_patch(volumes, row, centre, size):
    half = size // 2
    padded = np.pad(volumes[row].numpy(), [(0, 0), (half, half), (half, half), (0, 0)])
    x, y, z = centre
    return padded[:, x : x + size, y : y + size, z]


@settings(max_examples=30)
@given(st.sampled_from([1, 3, 5, 7]), st.integers(0, 2**31))
def test_windows_against_slicing_a_padded_volume(size, seed):
    random = np.random.default_rng(seed)
    volumes = numbered()
    rows = random.integers(4, size=6)
    centres = np.stack([random.integers(n, size=6) for n in SHAPE], axis=1)
    patches = gather_patches(volumes, torch.from_numpy(rows), torch.from_numpy(centres), size)
    expected = np.stack([slow_patch(volumes, row, centre, size) for row, centre in zip(rows, centres, strict=True)])
    np.testing.assert_array_equal(patches, expected)
    assert patches.dtype == torch.float32


LOCATIONS = np.array([[1, 2, 0], [3, 3, 2], [6, 7, 4], [2, 5, 1], [4, 1, 3]])


def mixed(seed=3, rows=(0, 2)):
    return MixedPatches(numbered(), np.array(rows), LOCATIONS, 1, 40, seed)


def colocated(n_locations=3, n_subjects=3, rows=(0, 1, 3), seed=3):
    return ColocatedPatches(numbered(), np.array(rows), LOCATIONS, 1, n_locations, n_subjects, seed)


def origins(patches):
    """(subject, location) of 1x1 patches, read off the numbers."""
    value = patches[..., 0, 0, 0].numpy().astype(int)
    return value // (2 * np.prod(SHAPE)), value % np.prod(SHAPE)


def places():
    return {int(np.ravel_multi_index(tuple(place), SHAPE)) for place in LOCATIONS}


def test_mixed_batches_draw_the_given_subjects_and_locations():
    subject, place = origins(mixed().batch(0))
    assert set(subject) == {0, 2}
    assert set(place) == places()


def test_colocated_batches_hold_each_subject_once_at_one_location():
    patches = colocated().batch(0)
    assert patches.shape == (3, 3, 2, 1, 1)
    subject, place = origins(patches)
    assert (np.sort(subject, axis=1) == [0, 1, 3]).all()
    assert (place == place[:, :1]).all()
    assert len(set(place[:, 0])) == 3


def test_controls_stand_in_another_order_at_every_location():
    firsts = {int(origins(colocated().batch(step))[0][b, 0]) for step in range(20) for b in range(3)}
    assert firsts == {0, 1, 3}


def test_fewer_subjects_than_there_are():
    subject, _ = origins(colocated(n_subjects=2).batch(1))
    assert all(len(set(row)) == 2 for row in subject)


def test_more_locations_than_there_are():
    assert colocated(n_locations=50).batch(0).shape[:2] == (50, 3)


@pytest.mark.parametrize("make", [mixed, colocated])
def test_a_batch_is_a_function_of_seed_and_step(make):
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert torch.equal(make(seed=5).batch(7), make(seed=5).batch(7))
    assert not torch.equal(make(seed=5).batch(7), make(seed=5).batch(8))
    assert not torch.equal(make(seed=5).batch(7), make(seed=6).batch(7))
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
