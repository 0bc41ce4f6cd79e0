import numpy as np
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.models.features.truncated_fov import away_from_truncation
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (40, 36, 32)
CENTRE = (np.array(SHAPE) - 1) / 2
RADIUS_VOX = np.sqrt(((np.stack(np.indices(SHAPE), -1) - CENTRE) ** 2).sum(-1))
GRID = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), RADIUS_VOX < 14)


def _kept(brain, reach_vox=1):
    return GRID.inverse_transform(away_from_truncation(GRID.transform(brain), GRID, reach_vox))


def test_voxels_within_reach_of_a_truncation_are_excluded():
    brain = GRID.brain_mask.copy()
    brain[..., 20:] = False
    for reach_vox in (1, 3):
        np.testing.assert_array_equal(_kept(brain, reach_vox), brain & (np.arange(SHAPE[2]) < 20 - reach_vox))
    assert _kept(brain, 0).sum() == brain.sum(), "features of single voxels are not affected"


def test_brains_that_differ_at_the_surface_are_not_changed():
    smaller = RADIUS_VOX < 11.5  # by 5 mm, all around
    inside = GRID.transform(smaller)
    assert away_from_truncation(inside, GRID, 3) is inside
    complete = np.ones(GRID.size, bool)
    assert away_from_truncation(complete, GRID, 3) is complete


def test_a_truncation_does_not_change_the_surface_elsewhere():
    brain = RADIUS_VOX < 12
    truncated = brain & (np.indices(SHAPE)[2] < 24)
    lost = truncated & ~_kept(truncated)
    far = ndimage.binary_dilation(GRID.brain_mask & (np.indices(SHAPE)[2] >= 24), iterations=9)
    assert lost.any() and not (lost & ~far).any()
