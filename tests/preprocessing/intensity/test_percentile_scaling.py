import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.intensity.percentile_scaling import normalise

GRID = Grid((6, 6, 6), np.eye(4))
RANDOM = np.random.default_rng(0)
IMAGE = Volume(RANDOM.gamma(4, 30, GRID.size_vox).astype(np.float32), GRID)
MASK = Volume(RANDOM.random(GRID.size_vox) > 0.4, GRID)


def test_scaling_of_a_small_image():
    """The percentiles 0.5 and 99.5 of 10, 20, 30, 50 are 10.15 and 49.7."""
    mask = np.ones((5, 1, 1), bool)
    mask[4] = False
    grid = Grid((5, 1, 1), np.eye(4))
    image = Volume(np.array([10, 20, 30, 50, 9000], np.float32).reshape(5, 1, 1), grid)
    found = normalise(image, Volume(mask, grid))
    assert found.voxels.ravel() == pytest.approx([0, 0.8 * 9.85 / 39.55, 0.8 * 19.85 / 39.55, 0.8 * 39.85 / 39.55, 0])


@given(scale=st.floats(1e-3, 1e4), shift=st.floats(0, 1e3))
def test_invariance_to_gain_and_offset(scale, shift):
    plain = normalise(IMAGE, MASK).voxels
    moved = IMAGE.with_voxels(IMAGE.voxels.astype(np.float64) * scale + shift * scale)
    assert normalise(moved, MASK).voxels == pytest.approx(plain, abs=1e-5)


def test_voxels_outside_the_brain_are_ignored_and_zero():
    bright_outside = IMAGE.with_voxels(np.where(MASK.voxels, IMAGE.voxels, 1e6).astype(np.float32))
    found = normalise(bright_outside, MASK).voxels
    assert np.array_equal(found, normalise(IMAGE, MASK).voxels)
    assert (found[~MASK.voxels] == 0).all()
    assert found[MASK.voxels].min() == 0 and 0.8 < found[MASK.voxels].max() < 1


def test_a_lesion_brighter_than_all_other_tissue_stays_brighter():
    grid = Grid((20, 20, 20), np.eye(4))
    image = RANDOM.normal(100, 10, grid.size_vox).astype(np.float32)
    image[2, 2, 2], image[3, 3, 3], image[4, 4, 4] = 130, 135, 1000
    found = normalise(Volume(image, grid), Volume(np.ones(grid.size_vox, bool), grid)).voxels
    assert 0.8 < found[2, 2, 2] < found[3, 3, 3] < 1
    assert found[4, 4, 4] == 1


def test_errors_for_an_empty_mask_and_a_constant_brain():
    with pytest.raises(UserError, match="mask is empty"):
        normalise(IMAGE, MASK.with_voxels(np.zeros(GRID.size_vox, bool)))
    with pytest.raises(UserError, match="the constant intensity 7 from percentile 0.5 to 99.5, expected contrast"):
        normalise(IMAGE.with_voxels(np.full(GRID.size_vox, 7.0)), MASK)
