"""Each corruption against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from skimage.feature import canny

from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS, corrupt, drawn, plasma_fractal

EVERY = tuple(CORRUPTIONS)
DETERMINISTIC = {"scale", "brightness", "stripe", "canny_edges"}
N = 30
BLACK = np.zeros((N, 28, 28), np.uint8)
NUMBERS = np.arange(N)


def _dot(value: int = 255) -> np.ndarray:
    images = BLACK.copy()
    images[:, 14, 14] = value
    return images


def _bar() -> np.ndarray:
    """A vertical bar, 4 wide and 16 high, about the centre."""
    images = BLACK.copy()
    images[:, 6:22, 12:16] = 255
    return images


def test_there_are_fifteen():
    assert len(EVERY) == 15 and CLEAN not in EVERY


@pytest.mark.parametrize("name", (CLEAN, *EVERY))
def test_corruption_does_not_depend_on_the_other_digits(name, some_images):
    before = some_images.copy()
    numbers = np.arange(len(some_images))
    expected = corrupt(name, some_images, numbers, seed=3)
    assert expected.shape == some_images.shape and expected.dtype == np.uint8
    few = [7, 3, 20]
    np.testing.assert_array_equal(corrupt(name, some_images[few], numbers[few], seed=3), expected[few])
    np.testing.assert_array_equal(some_images, before)


@pytest.mark.parametrize("name", EVERY)
def test_random_corruptions_depend_on_the_seed(name, some_images):
    numbers = np.arange(len(some_images))
    same = np.array_equal(corrupt(name, some_images, numbers, 0), corrupt(name, some_images, numbers, 1))
    assert same == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", EVERY)
def test_every_corruption_corrupts(name, some_images):
    assert (corrupt(name, some_images, np.arange(len(some_images)), 0) != some_images).any(axis=(1, 2)).all()


def test_shot_noise_is_poisson_in_thirds():
    grey = np.full((N, 28, 28), 51, np.uint8)  # 0.2: three photons in five pixels
    noisy = corrupt("shot_noise", grey, NUMBERS, 0)
    assert set(np.unique(noisy)) == {0, 85, 170, 255}
    shares = [(noisy == value).mean() for value in (0, 85, 170)]
    np.testing.assert_allclose(shares, [np.exp(-0.6) * p for p in (1, 0.6, 0.18)], atol=0.01)
    assert not corrupt("shot_noise", BLACK, NUMBERS, 0).any()


def test_impulse_noise_is_17_percent_salt_and_pepper():
    grey = np.full((N, 28, 28), 100, np.uint8)
    noisy = corrupt("impulse_noise", grey, NUMBERS, 0)
    assert set(np.unique(noisy)) == {0, 100, 255}
    np.testing.assert_allclose([(noisy == 0).mean(), (noisy == 255).mean()], [0.085, 0.085], atol=0.008)


def test_glass_blur_preserves_the_sum():
    grey = np.full((N, 28, 28), 90, np.uint8)
    np.testing.assert_array_equal(corrupt("glass_blur", grey, NUMBERS, 0), grey)
    images = CORRUPTIONS["glass_blur"](_bar() / 255.0, [np.random.default_rng(n) for n in range(N)])
    np.testing.assert_allclose(images.sum(axis=(1, 2)), 64, rtol=0.01)
    # Swaps with pixels above and left spread the intensity more than the two blurs alone.
    assert images.max() < 1 and images.std(axis=0).max() > 0.1


def test_motion_blur_of_a_dot_is_half_a_gaussian():
    weights = np.exp(-(np.arange(11.0) ** 2) / 18)
    weights /= weights.sum()
    blurred = CORRUPTIONS["motion_blur"](_dot() / 255.0, [np.random.default_rng(n) for n in range(N)])
    for image in blurred:
        rows, columns = np.nonzero(image)
        assert image[14, 14] == pytest.approx(weights[0])
        assert image.sum() == pytest.approx(1)
        # Within 45 degrees of the rows, on one side, up to the radius.
        assert (np.abs(rows - 14) <= np.abs(columns - 14)).all()
        assert (columns <= 14).all() and np.hypot(rows - 14, columns - 14).max() <= 10.8
        # Steps are rounded to pixels, so the distance is correct on average.
        far = (image[rows, columns] * np.hypot(rows - 14, columns - 14)).sum()
        assert far == pytest.approx((weights * np.arange(11)).sum(), abs=0.35)
    assert len({tuple(image.ravel() > 0) for image in blurred}) > 5, "the angle varies"


def test_shear_shifts_rows_in_proportion_to_their_distance_from_the_centre():
    sheared = CORRUPTIONS["shear"](_bar() / 255.0, [np.random.default_rng(n) for n in range(N)])
    columns = np.arange(28) - 13.5
    signs = set()
    for image in sheared:
        np.testing.assert_allclose(image.sum(axis=1), (_bar()[0] / 255).sum(axis=1), atol=1e-9)
        middles = (image * columns).sum(axis=1)[6:22] / 4
        slope = np.polyfit(np.arange(6, 22) - 13.5, middles, 1)[0]
        assert abs(slope) == pytest.approx(np.tan(0.4), rel=1e-6)
        signs.add(np.sign(slope))
    assert signs == {-1, 1}


def test_scale_halves_the_sum():
    scaled = CORRUPTIONS["scale"](_bar() / 255.0, [])
    np.testing.assert_allclose(scaled.sum(axis=(1, 2)), 64 * 0.49, rtol=0.03)
    np.testing.assert_allclose(scaled, scaled[:, ::-1, ::-1], atol=1e-9)


def test_rotate_turns_by_0_4_rad_about_the_centre():
    turned = CORRUPTIONS["rotate"](_bar() / 255.0, [np.random.default_rng(n) for n in range(N)])
    rows, columns = np.mgrid[:28, :28] - 13.5
    angles = []
    for image in turned:
        assert image.sum() == pytest.approx(64, rel=0.02)
        covariance = np.cov(np.stack([rows.ravel(), columns.ravel()]), aweights=image.ravel())
        main = np.linalg.eigh(covariance)[1][:, -1]
        angles.append(np.arctan(main[1] / main[0]))
    np.testing.assert_allclose(np.abs(angles), 0.4, atol=0.01)
    assert {np.sign(angle) for angle in angles} == {-1, 1}


def test_brightness_adds_half_and_clips(some_images):
    expected = np.rint(255 * np.minimum(some_images / 255 + 0.5, 1)).astype(np.uint8)
    np.testing.assert_array_equal(corrupt("brightness", some_images, np.arange(len(some_images)), 0), expected)


def test_translate_moves_by_three_in_both_axes():
    moved = corrupt("translate", _dot(), NUMBERS, 0)
    places = {tuple(int(i[0]) for i in np.nonzero(image)) for image in moved}
    assert places == {(11, 11), (11, 17), (17, 11), (17, 17)}
    assert (moved.sum(axis=(1, 2)) == 255).all()


def test_stripe_inverts_the_outer_quarters(some_images):
    striped = corrupt("stripe", some_images, np.arange(len(some_images)), 0)
    np.testing.assert_array_equal(striped[:, :, :7], 255 - some_images[:, :, :7])
    np.testing.assert_array_equal(striped[:, :, 7:21], some_images[:, :, 7:21])
    np.testing.assert_array_equal(striped[:, :, 21:], 255 - some_images[:, :, 21:])


def test_fog_is_a_plasma_fractal_scaled_to_the_maximum_of_the_image(some_images):
    images = some_images / 255
    foggy = CORRUPTIONS["fog"](images, [np.random.default_rng(n) for n in range(len(images))])
    clouds = plasma_fractal([np.random.default_rng(n) for n in range(len(images))], size=32, decay=1.4)
    highest = images.max(axis=(1, 2))
    for image, cloud, result, high in zip(images, clouds, foggy, highest, strict=True):
        np.testing.assert_allclose(result, (image + 3 * cloud[:28, :28]) * high / (high + 3))
    assert (foggy.max(axis=(1, 2)) <= highest + 1e-12).all()
    assert not corrupt("fog", BLACK, NUMBERS, 0).any()


def test_plasma_fractal_ranges_from_0_to_1_and_is_smooth():
    clouds = plasma_fractal([np.random.default_rng(n) for n in range(200)], size=32, decay=1.4)
    np.testing.assert_allclose(clouds.min(axis=(1, 2)), 0)
    np.testing.assert_allclose(clouds.max(axis=(1, 2)), 1)
    steps = [np.abs(clouds - np.roll(clouds, shift, axis=2)).mean() for shift in (1, 4, 16)]
    assert steps[0] < 0.8 * steps[1] < 0.8 * steps[2]
    # All pixels have the same expected value.
    assert np.ptp(clouds.mean(axis=0)) < 0.15


def test_spatter_is_between_the_image_and_grey_63(some_images):
    numbers = np.arange(len(some_images))
    dirty = corrupt("spatter", some_images, numbers, 0).astype(int)
    low, high = np.minimum(some_images, 63), np.maximum(some_images, 63)
    changed = dirty != some_images
    assert (dirty >= low).all() and (dirty <= high).all()
    # The opacity is at least 0.8.
    assert (np.abs(dirty - 63)[changed] <= 0.2 * np.abs(some_images.astype(int) - 63)[changed] + 1).all()
    assert 0.02 < changed.mean() < 0.5


def test_intensity_of_lines_depends_on_the_distance():
    line = drawn(np.array([[[14.0, 5.0], [14.0, 22.0]]]))
    np.testing.assert_allclose(line[14, 5:23], 1)
    np.testing.assert_allclose(line[13, 5:23], np.log(1 - 1 / 2.3) + 1)
    assert not line[12].any() and not line[16].any()
    assert line[14, 4] == pytest.approx(np.log(1 - 1 / 2.3) + 1) and not line[14, :3].any()


def test_dotted_line_consists_of_dashes_over_the_digit(some_images):
    lines = corrupt("dotted_line", BLACK, NUMBERS, 0)
    for line in lines:
        columns = np.flatnonzero(line.any(axis=0))
        assert columns[0] <= 5 and columns[-1] >= 20
        assert 3 <= label(line, np.ones((3, 3)))[1] <= 6
    over = corrupt("dotted_line", some_images, np.arange(len(some_images)), 0)
    np.testing.assert_array_equal(over[:N], np.maximum(some_images[:N], lines))


def test_zigzag_is_one_line_that_alternates_sides(some_images):
    lines = corrupt("zigzag", BLACK, NUMBERS, 0)
    for line in lines:
        assert label(line > 0, np.ones((3, 3)))[1] == 1
        rows, columns = np.nonzero(line > 200)
        deviation = rows - np.polyval(np.polyfit(columns, rows, 1), columns)
        assert deviation.max() > 1 and deviation.min() < -1
    over = corrupt("zigzag", some_images, np.arange(len(some_images)), 0)
    np.testing.assert_array_equal(over[:N], np.maximum(some_images[:N], lines))


def test_canny_edges_agree_with_scikit_image(some_images):
    edges = corrupt("canny_edges", some_images, np.arange(len(some_images)), 0)
    assert set(np.unique(edges)) == {0, 255}
    for image, edge in zip(some_images, edges, strict=True):
        np.testing.assert_array_equal(edge > 0, canny(image / 255))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(EVERY), st.integers(0, 255), st.integers(0, 2**31))
def test_constant_images(name, grey, seed):
    flat = np.full((2, 28, 28), grey, np.uint8)
    assert corrupt(name, flat, np.array([0, 10**6]), seed).shape == (2, 28, 28)
