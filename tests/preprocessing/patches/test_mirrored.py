"""Mirrored copies of the controls."""

import numpy as np
import pytest
from voxout.data_manifests.cohort.subject import count_participants, original_key, participant_of_key
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.preprocessing.intensity.derived_maps import DERIVED_MAPS, Brain
from voxout.preprocessing.patches.mirrored import are_copies, is_symmetric, with_copies
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

SHAPE = (5, 4, 3)
AFFINE = np.diag([2.0, 2, 2, 1])
AFFINE[0, 3] = -4


@pytest.mark.parametrize("spacing_mm", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_the_grids_of_the_template_are_symmetric_and_so_is_its_brain(spacing_mm):
    template = load_template(spacing_mm)
    assert is_symmetric(template.grey.grid)
    white = template.white.voxels
    assert np.corrcoef(white.ravel(), white[::-1].ravel())[0, 1] > 0.99


def test_a_shifted_or_oblique_grid_is_not_symmetric():
    assert is_symmetric(Grid(SHAPE, AFFINE))
    for place, value in (((0, 3), -3.0), ((0, 1), 0.1), ((2, 0), 0.1)):
        other = AFFINE.copy()
        other[place] = value
        assert not is_symmetric(Grid(SHAPE, other))


def test_a_copy_is_the_scan_with_its_first_axis_reversed_and_of_the_same_participant():
    volumes = np.random.default_rng(0).random((2, 3, *SHAPE)).astype(np.float16)
    inside = volumes[:, 0] > 0.5
    grid = VoxelMask(Grid(SHAPE, AFFINE), np.ones(SHAPE, bool))
    store = VolumeStore(None, ("sub-1", "sub-2_ses-b"), ("t1w", "x", "y"), grid, volumes, inside)
    keys = with_copies(store.keys)
    assert [original_key(key) for key in keys] == ["sub-1", "sub-1", "sub-2_ses-b", "sub-2_ses-b"]
    assert are_copies(keys).tolist() == [False, True, False, True]
    assert count_participants(keys) == 2 and participant_of_key(keys[3]) == "sub-2"
    np.testing.assert_array_equal(store.volumes_of(keys[2]), volumes[1])
    np.testing.assert_array_equal(store.volumes_of(keys[3]), volumes[1][:, ::-1])
    np.testing.assert_array_equal(store.inside_of(keys[1]), inside[0][::-1])
    with pytest.raises(UserError, match="does not contain sub-3"):
        store.volumes_of("sub-3_mirrored")


@pytest.mark.parametrize("name", DERIVED_MAPS)
def test_a_mirrored_derived_map_is_the_derived_map_of_the_mirrored_scan(name):
    """So mirroring the stored channels is enough."""
    template = load_template(4.0)
    brain = template.grey.voxels + template.white.voxels > 0.3
    random = np.random.default_rng(1).normal(0, 0.02, brain.shape)
    image = np.where(brain, 0.3 * template.grey.voxels + 0.8 * template.white.voxels + random, 0)
    image = np.clip(image, 0, 1).astype(np.float32)
    grid = template.grey.grid

    def derived(flip: slice) -> np.ndarray:
        return Brain(Volume(image[flip].copy(), grid), Volume(brain[flip].copy(), grid)).derive(name).voxels

    own, mirrored = derived(slice(None)), derived(slice(None, None, -1))
    assert own.std() > 0
    np.testing.assert_allclose(mirrored[::-1], own, atol=2e-3)
