"""Properties of derived maps, and the effects that each map detects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.data_manifests.synthetic.lesion_effects import Blur, Shift, Texture
from voxout.data_manifests.synthetic.painted_lesions import paint_lesion
from voxout.preprocessing.intensity.derived_maps import DERIVED_MAPS, Brain, gaussian_weights, tissue_levels
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(4.0)
MASK = TEMPLATE.brain_mask
NAMES = tuple(DERIVED_MAPS)


def noisy(seed: int, amount: float = 0.04) -> Volume:
    noise = np.random.default_rng(seed).normal(0, amount, MASK.voxels.shape)
    return MASK.with_voxels(np.where(MASK.voxels, np.clip(TEMPLATE.t1w.voxels + noise, 0, 1), 0).astype(np.float32))


def maps_of(image: Volume, mask: Volume = MASK) -> dict[str, np.ndarray]:
    brain = Brain(image, mask)
    return {name: brain.derive(name).voxels for name in NAMES}


# -- the Gaussian ------------------------------------------------------------------------------------------------------
@given(sigma=st.floats(0.1, 4))
def test_gaussian_has_the_nominal_width(sigma):
    weights = gaussian_weights(sigma)
    places = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1) and np.array_equal(weights, weights[::-1])
    assert np.sqrt(weights @ places**2) == pytest.approx(sigma, rel=0.03)


def test_convolution_of_gaussians_is_a_gaussian():
    twice = np.convolve(gaussian_weights(0.6), gaussian_weights(0.8))
    once = gaussian_weights(1.0)
    middle = len(twice) // 2
    reach = min(len(once) // 2, middle)
    np.testing.assert_allclose(
        twice[middle - reach : middle + reach + 1], once[len(once) // 2 - reach :][: 2 * reach + 1], atol=5e-3
    )


def test_mean_uses_only_voxels_of_the_brain():
    random = np.random.default_rng(0)
    grid = Grid((9, 8, 7), np.diag([2.0, 1.0, 3.0, 1.0]))
    inside = random.random(grid.size_vox) < 0.6
    voxels = random.random(grid.size_vox).astype(np.float32)
    brain = Brain(Volume(voxels, grid), Volume(inside, grid))
    corner = np.array([side.start for side in ndimage.find_objects(inside.astype(int))[0]])
    found = brain.mean(brain.voxels, 2.0)
    weights = [gaussian_weights(2.0 / mm) for mm in (2.0, 1.0, 3.0)]
    for place in np.argwhere(inside)[::17]:
        total = share = 0.0
        for other in np.argwhere(inside):
            apart = other - place
            if all(abs(d) <= len(w) // 2 for d, w in zip(apart, weights, strict=True)):
                weight = np.prod([w[len(w) // 2 + d] for d, w in zip(apart, weights, strict=True)])
                total, share = total + weight * voxels[tuple(other)], share + weight
        assert found[tuple(place - corner)] == pytest.approx(total / share, rel=1e-4)


# -- properties --------------------------------------------------------------------------------------------------------
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), name=st.sampled_from(NAMES))
def test_range_and_mirror_symmetry(seed, name):
    image = noisy(seed)
    inside = MASK.voxels & (np.indices(MASK.voxels.shape)[2] > 20)
    mask = MASK.with_voxels(inside)
    derived = Brain(image, mask).derive(name).voxels
    assert derived.dtype == np.float32 and derived.shape == image.voxels.shape
    assert derived.min() >= 0 and derived.max() <= 1 and (derived[~inside] == 0).all() and derived[inside].any()
    mirrored = Brain(image.with_voxels(image.voxels[::-1]), mask.with_voxels(inside[::-1])).derive(name).voxels
    np.testing.assert_allclose(mirrored[::-1], derived, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_constant_brain_has_constant_maps(name):
    """The border to the background has no effect."""
    constant = MASK.with_voxels(np.where(MASK.voxels, 0.6, 0).astype(np.float32))
    inside = Brain(constant, MASK).derive(name).voxels[MASK.voxels]
    assert np.ptp(inside) < 1e-3
    if name in ("detail", "fineness"):
        assert inside.max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_voxels_outside_the_brain_are_ignored(name):
    image = noisy(1)
    inside = MASK.voxels & (np.indices(MASK.voxels.shape)[0] > 18)
    mask = MASK.with_voxels(inside)
    bright_outside = image.with_voxels(np.where(inside, image.voxels, 0.9).astype(np.float32))
    np.testing.assert_array_equal(
        Brain(bright_outside, mask).derive(name).voxels, Brain(image, mask).derive(name).voxels
    )


def test_contrast_and_brightness_affect_only_detail():
    image = noisy(2)
    before = maps_of(image)
    after = maps_of(image.with_voxels(np.where(MASK.voxels, 0.5 * image.voxels + 0.3, 0).astype(np.float32)))
    for name in ("junction", "extension", "fineness"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-4)
    np.testing.assert_allclose(after["detail"], 0.5 * before["detail"], atol=1e-4)


def test_inverted_contrast_gives_the_same_maps():
    image = noisy(3)
    inverted = image.with_voxels(np.where(MASK.voxels, 1 - image.voxels, 0).astype(np.float32))
    for name, values in maps_of(image).items():
        np.testing.assert_allclose(Brain(inverted, MASK).derive(name).voxels, values, atol=1e-4, err_msg=name)
    grey, white = tissue_levels(inverted, MASK)
    assert grey > white


@pytest.fixture(scope="module")
def blurred_template() -> Volume:
    """The template at 1 mm, smooth enough to be represented at 2 mm."""
    fine = load_template(1.0)
    smooth = ndimage.gaussian_filter(fine.t1w.voxels, 1.5) / np.maximum(
        ndimage.gaussian_filter(fine.brain_mask.voxels.astype(np.float32), 1.5), 0.1
    )
    return fine.t1w.with_voxels(smooth.astype(np.float32))


@pytest.mark.slow
def test_maps_agree_at_1_and_2_mm(blurred_template):
    """Sizes are in millimetres; the difference is half a voxel of smoothing."""
    fine, coarse = load_template(1.0), load_template(2.0)
    to_fine = np.linalg.inv(fine.affine) @ coarse.affine

    def at_coarse(values: np.ndarray) -> np.ndarray:
        return ndimage.affine_transform(
            values, to_fine[:3, :3], to_fine[:3, 3], output_shape=coarse.grid.size_vox, order=1
        )

    masked = np.where(fine.brain_mask.voxels, blurred_template.voxels, 0).astype(np.float32)
    brain = Brain(fine.t1w.with_voxels(masked), fine.brain_mask)
    seen = np.where(coarse.brain_mask.voxels, at_coarse(blurred_template.voxels), 0).astype(np.float32)
    coarse_brain = Brain(coarse.t1w.with_voxels(seen), coarse.brain_mask)
    deep = ndimage.binary_erosion(coarse.brain_mask.voxels, iterations=2)
    for name in NAMES:
        one, other = at_coarse(brain.derive(name).voxels)[deep], coarse_brain.derive(name).voxels[deep]
        assert np.corrcoef(one, other)[0, 1] > 0.97, name
        assert np.median(other) == pytest.approx(np.median(one), rel=0.12), name


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_constant_and_empty_brains_give_finite_maps(level):
    voxels = np.where(MASK.voxels, level, 0).astype(np.float32)
    empty = MASK.with_voxels(np.zeros_like(MASK.voxels))
    for name in NAMES:
        assert np.isfinite(Brain(MASK.with_voxels(voxels), MASK).derive(name).voxels).all()
        assert not Brain(noisy(0), empty).derive(name).voxels.any()


# -- detected effects --------------------------------------------------------------------------------------------------
SHARP = load_template(2.0)
GREY, WHITE = 0.7, 0.9


def change(effect, centre_mm, radius_mm=7.0) -> dict[str, float]:
    """Change of each map's mean in a painted ball, in standard deviations of the map over the brain.

    The template is an average of many brains; here each voxel gets the intensity of its most probable tissue.
    """
    places = np.moveaxis(np.indices(SHARP.grid.size_vox), 0, -1) @ SHARP.affine[:3, :3].T + SHARP.affine[:3, 3]
    ball = np.linalg.norm(places - np.array(centre_mm), axis=-1) <= radius_mm
    noise = np.random.default_rng(5).normal(0, 0.02, SHARP.grid.size_vox)
    inside = SHARP.brain_mask.voxels
    tissue = np.select([SHARP.white.voxels > 0.5, SHARP.grey.voxels > 0.4], [WHITE, GREY], 0.3)
    image = SHARP.t1w.with_voxels(np.where(inside, np.clip(tissue + noise, 0, 1), 0).astype(np.float32))
    lesioned = paint_lesion(image, image.with_voxels(ball), effect, softness_mm=1.0).image
    before, after = Brain(image, SHARP.brain_mask), Brain(lesioned, SHARP.brain_mask)
    found = {}
    for name in NAMES:
        healthy = before.derive(name).voxels
        found[name] = float((after.derive(name).voxels - healthy)[ball].mean() / healthy[inside].std())
    return found


DEEP_WHITE, BORDER = (26, -20, 30), (34, -46, 40)


def test_dark_white_matter_raises_extension():
    dark = change(Shift(GREY - WHITE), DEEP_WHITE)
    assert dark["extension"] > 1 > dark["detail"]


def test_blurred_border_raises_junction_and_lowers_detail():
    blurred = change(Blur(3.5), BORDER)
    assert blurred["junction"] > 1 and blurred["detail"] < -0.3


def test_texture_raises_detail_and_fineness():
    textured = change(Texture(0.08, 0.8, seed=1), DEEP_WHITE)
    assert textured["detail"] > 0.5 and textured["fineness"] > 0.5
