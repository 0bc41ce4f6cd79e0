"""Random edits of healthy images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxout.models.edits.edited_images import edited, random_blob
from voxout.models.edits.families import FAMILIES, SHAM, Crop, Tissue

SPACING_MM = np.array([2.0, 2.0, 2.0])
SHAPE = (60, 64, 56)
TISSUE = Tissue(0.1, 0.45, 0.7)


def brain(seed=0):
    """A ball of two tissues with a little noise."""
    random = np.random.default_rng(seed)
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    inside = np.linalg.norm(places, axis=0) < 26
    white = ndimage.gaussian_filter(random.normal(size=SHAPE), 2.5) > 0
    image = np.where(white, TISSUE.white, TISSUE.grey) + random.normal(0, 0.02, SHAPE)
    return (np.clip(image, 0, 1) * inside).astype(np.float32), inside


def edit(families=tuple(FAMILIES), seed=0, number=8):
    image, inside = brain()
    donor, _ = brain(1)
    random = np.random.default_rng(seed)
    drawn = edited(image[None], inside, donor[None], [TISSUE], SPACING_MM, random, number=number, families=families)
    return image, inside, drawn


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.04, 4), st.sampled_from([1.0, 2.0, 3.0]))
def test_blobs_have_the_volume_asked_for_and_end_within_their_box(seed, volume_ml, spacing_mm):
    alpha = random_blob(np.random.default_rng(seed), volume_ml, np.full(3, spacing_mm))
    voxels = max(1, round(volume_ml * 1000 / spacing_mm**3))
    assert (alpha >= 0.5).sum() == pytest.approx(voxels, abs=1)
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert (alpha >= 0.5).sum() == 1 or all((np.take(alpha, (0, -1), axis) < 0.5).all() for axis in range(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_changes_the_tissue_of_its_edits_and_nothing_else(family):
    for seed in range(3):
        image, inside, drawn = edit((family,), seed)
        change = np.abs(drawn.images[0] - image)
        assert drawn.images.min() >= 0 and drawn.images.max() <= 1
        assert change[drawn.numbers == 0].max() < 0.05 or SHAM in drawn.families
        assert not change[~inside].any()
        for number, name in enumerate(drawn.families, 1):
            if name == family:
                assert change[drawn.numbers == number].mean() > 0.004, (seed, number)


def test_edits_do_not_touch_each_other():
    _, _, drawn = edit(number=12)
    assert len(drawn.families) >= 4
    labels, count = ndimage.label(drawn.numbers != 0, np.ones((3, 3, 3)))
    for label in range(1, count + 1):
        assert len(set(drawn.numbers[labels == label]) - {-1}) <= 1


def test_shams_are_hardly_visible():
    image, _, drawn = edit(("shift",), seed=1, number=12)
    shams = [number for number, name in enumerate(drawn.families, 1) if name == SHAM]
    shifts = [number for number, name in enumerate(drawn.families, 1) if name == "shift"]
    change = np.abs(drawn.images[0] - image)
    assert shams
    assert max(change[drawn.numbers == n].mean() for n in shams) < min(
        change[drawn.numbers == n].mean() for n in shifts
    )


def test_edits_depend_on_the_random_generator_only():
    one, other, third = edit(seed=3)[2], edit(seed=3)[2], edit(seed=4)[2]
    np.testing.assert_array_equal(one.images, other.images)
    assert one.families == other.families
    assert (one.numbers != third.numbers).any()


def test_blurring_does_not_remove_the_noise_of_every_edit():
    image, _ = brain()
    alpha = np.ones(SHAPE, np.float32)
    crop = Crop(image, alpha, image, SPACING_MM, TISSUE)
    core = (slice(25, 35),) * 3

    def detail(voxels):
        return (voxels - ndimage.gaussian_filter(voxels, 1))[core].std()

    details = [detail(FAMILIES["blur"](crop, np.random.default_rng(seed))) for seed in range(12)]
    assert min(details) < 0.2 * detail(image)
    assert max(details) > 2 * min(details)


def test_growth_and_shrinkage_move_tissue_away_from_and_towards_the_middle():
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    ball = (np.linalg.norm(places, axis=0) < 6).astype(np.float32)
    alpha = (np.linalg.norm(places, axis=0) < 16).astype(np.float32)
    crop = Crop(ball, alpha, ball, SPACING_MM, TISSUE)
    volumes = [FAMILIES["pinch"](crop, np.random.default_rng(seed)).sum() / ball.sum() for seed in range(12)]
    assert min(volumes) < 0.7
    assert max(volumes) > 1.5
