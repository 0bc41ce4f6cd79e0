import numpy as np
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.models.features.truncated_fov import away_from_truncation
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (40, 36, 32)
CENTRE = (np.array(SHAPE) - 1) / 2
RADIUS_VOX = np.sqrt(((np.stack(np.indices(SHAPE), -1) - CENTRE) ** 2).sum(-1))
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), RADIUS_VOX < 14)


def _clear(brain, reach_vox=1):
    return GRID.inverse_transform(away_from_truncation(GRID.transform(brain), GRID, reach_vox))


def test_what_patches_would_see_of_a_cut_is_left_out():
    brain = GRID.brain_mask.copy()
    brain[..., 20:] = False
    for reach_vox in (1, 3):
        kept = _clear(brain, reach_vox)
        np.testing.assert_array_equal(kept, brain & (np.arange(SHAPE[2]) < 20 - reach_vox))
    assert _clear(brain, 0).sum() == brain.sum(), "who looks at the voxel alone sees no cut"


def test_brains_that_differ_at_the_surface_are_left_alone():
    smaller = RADIUS_VOX < 11.5  # by 5 mm, all around
    inside = GRID.transform(smaller)
    assert away_from_truncation(inside, GRID, 3) is inside
    whole = np.ones(GRID.size, bool)
    assert away_from_truncation(whole, GRID, 3) is whole


def test_a_cut_leaves_the_surface_elsewhere_as_it_is():
    brain = RADIUS_VOX < 12
    cut = brain & (np.indices(SHAPE)[2] < 24)
    lost = cut & ~_clear(cut)
    far = ndimage.binary_dilation(GRID.brain_mask & (np.indices(SHAPE)[2] >= 24), iterations=9)
    assert lost.any() and not (lost & ~far).any()
