"""Effects of painted lesions: expected values inside the lesion, no change elsewhere."""

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.data_manifests.synthetic.lesion_effects import Blur, Shift, Swelling, Texture
from voxout.data_manifests.synthetic.painted_lesions import paint_lesion

GRID = Grid((44, 40, 36), np.diag([1.0, 1.0, 1.0, 1.0]))
INDEX = np.indices(GRID.size_vox)
MIDDLE = np.array([22, 20, 18])
RADIUS = np.sqrt(((INDEX - MIDDLE[:, None, None, None]) ** 2).sum(0))
EFFECTS = [Shift(-30.0), Blur(1.5), Texture(20.0, 1.0, seed=3), Swelling(0.4), Swelling(-0.3)]


def volume(voxels):
    return Volume(np.asarray(voxels, np.float32), GRID)


def ball(radius=9):
    return Volume(radius >= RADIUS, GRID)


@pytest.mark.parametrize("effect", EFFECTS, ids=repr)
def test_rest_of_the_scan_is_unchanged_and_result_is_deterministic(effect):
    image = volume(np.random.default_rng(0).uniform(50, 150, GRID.size_vox))
    one, two = (paint_lesion(image, ball(), effect, softness_mm=1.0) for _ in range(2))
    far = RADIUS > 15
    np.testing.assert_array_equal(one.image.voxels[far], image.voxels[far])
    np.testing.assert_array_equal(one.image.voxels, two.image.voxels)
    assert np.abs(one.image.voxels - image.voxels)[one.lesion_mask.voxels].mean() > 1
    # The lesion mask depends only on the shape.
    same = paint_lesion(image, ball(), Shift(1.0), softness_mm=1.0).lesion_mask
    np.testing.assert_array_equal(one.lesion_mask.voxels, same.voxels)


@pytest.mark.parametrize("effect", [Blur(2.0), Swelling(0.4)], ids=repr)
def test_no_change_of_a_constant_image(effect):
    painted = paint_lesion(volume(np.full(GRID.size_vox, 80)), ball(), effect, softness_mm=1.0)
    assert painted.image.voxels == pytest.approx(80, abs=1e-3)


def test_blurred_border_equals_gaussian_filter():
    """Inside the lesion, an edge becomes the cumulative normal distribution of the distance to it."""
    border = volume(np.where(INDEX[0] < 22, 0, 100))
    painted = paint_lesion(border, ball(14), Blur(1.5), softness_mm=0.0).image.voxels
    along = painted[19:25, 20, 18]
    expected = ndimage.gaussian_filter1d(np.where(np.arange(44) < 22, 0.0, 100), 1.5)[19:25]
    np.testing.assert_allclose(along, expected, atol=0.1)
    assert painted[30, 20, 18] == pytest.approx(100, abs=0.01), "no change away from the border"


@pytest.mark.parametrize("grain_mm", [0.0, 1.5])
def test_texture_keeps_the_mean_and_has_the_given_amplitude(grain_mm):
    painted = paint_lesion(volume(np.full(GRID.size_vox, 100)), ball(), Texture(12.0, grain_mm, seed=1), softness_mm=0)
    inside = painted.image.voxels[painted.lesion_mask.voxels]
    assert inside.mean() == pytest.approx(100, abs=0.01) and inside.std() == pytest.approx(12, rel=1e-3)
    neighbours = np.corrcoef(painted.image.voxels[18:26, 20, 18], painted.image.voxels[19:27, 20, 18])[0, 1]
    assert neighbours > 0.6 if grain_mm else neighbours < 0.6


@pytest.mark.parametrize("growth", [0.4, -0.3])
def test_nodule_grows_or_shrinks(growth):
    nodule = volume(100 * np.clip(5.5 - RADIUS, 0, 1))
    painted = paint_lesion(nodule, ball(15), Swelling(growth), softness_mm=0.0).image
    before, after = ((v.voxels > 50).sum() for v in (nodule, painted))
    assert after / before == pytest.approx((1 + growth) ** 3, rel=0.12)
    centre = np.argwhere(painted.voxels > 50).mean(axis=0)
    assert centre == pytest.approx(MIDDLE, abs=0.1)


def test_dark_lesion_is_not_below_zero():
    painted = paint_lesion(volume(np.full(GRID.size_vox, 20)), ball(), Shift(-50.0), softness_mm=0.0)
    assert painted.image.voxels.min() == 0
