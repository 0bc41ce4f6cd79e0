"""Lesions painted into copies of a healthy brain: volume, contrast, place, and nothing elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.data_manifests.synthetic.lesion_kinds import KINDS
from voxout.data_manifests.synthetic.painted_copies import (
    APART_MM,
    HealthyBrain,
    WantedLesion,
    paint_copy,
    wanted_lesions,
)
from voxout.data_manifests.synthetic.soft_shapes import soft_shape

SIZE = (60, 64, 56)
GRID = Grid(SIZE, np.diag([2.0, 2.0, 2.0, 1.0]))
FLUID, GREY, WHITE = 0.2, 0.5, 0.7


def brain(shrinkage: float = 0.8) -> HealthyBrain:
    """Return a ball of white matter in a shell of grey matter in a shell of fluid."""
    middle = (np.array(SIZE) - 1) / 2
    radius_mm = np.linalg.norm((np.moveaxis(np.indices(SIZE), 0, -1) - middle) * 2, axis=-1)
    voxels = np.select([radius_mm < 38, radius_mm < 50, radius_mm < 54], [WHITE, GREY, FLUID], 0)
    inside = radius_mm < 54
    noise = np.random.default_rng(0).normal(0, 0.01, SIZE)
    image = np.where(inside, voxels + noise, 0).astype(np.float32)
    return HealthyBrain(Volume(image, GRID), Volume(inside, GRID), inside, np.full(SIZE, shrinkage))


BRAIN = brain()


def painted(kind: str, ml: float, strength: float, seed: int = 0, on: HealthyBrain = BRAIN):
    random = np.random.default_rng(seed)
    copy = paint_copy(on, [WantedLesion(kind, ml, strength)], random)
    assert len(copy.lesions) == 1
    return copy, copy.image.voxels - on.image.voxels


@pytest.mark.parametrize("volume_mm3", [30, 100, 1000, 8000])
def test_a_shape_has_its_volume_and_varies(volume_mm3):
    shapes = [soft_shape(np.random.default_rng(seed), volume_mm3, np.full(3, 2.0)) for seed in range(6)]
    for shape in shapes:
        fine = (shape.fine >= 0.5).sum() * 8 / 27
        assert fine == pytest.approx(volume_mm3, rel=0.02, abs=1)
        core = shape.mask(shape.sampled(shape.fine))
        assert core.sum() * 8 == pytest.approx(volume_mm3, rel=0.02, abs=4.1)
        _, number = ndimage.label(core, np.ones((3, 3, 3)))
        assert number == 1 and not core[0].any() and not core[:, :, -1].any()
    widths = {tuple(np.ptp(np.argwhere(shape.fine >= 0.5), axis=0)) for shape in shapes}
    assert len(widths) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ml", [0.2, 2.0])
def test_a_lesion_has_the_volume_that_it_would_have_in_the_head(kind, ml):
    copy, change = painted(kind, ml, KINDS[kind].strongest)
    (lesion,) = copy.lesions
    assert lesion.ml == pytest.approx(ml, rel=0.05)
    assert lesion.ml == pytest.approx((copy.labels > 0).sum() * 8 * 0.8 / 1000)
    assert (change != 0).sum() > 0.5 * (copy.labels > 0).sum()
    far = ndimage.binary_dilation(copy.labels > 0, iterations=4)
    assert not change[~far].any() and not change[~BRAIN.brain_mask.voxels].any()


@pytest.mark.parametrize(("kind", "sign"), [("dark", -1), ("bright", 1)])
@pytest.mark.parametrize("strength", [0.25, 0.75])
def test_the_change_is_the_share_of_the_grey_white_contrast(kind, sign, strength):
    assert BRAIN.contrast == pytest.approx(WHITE - GREY, abs=0.01)
    copy, change = painted(kind, 4.0, strength)
    deep = ndimage.binary_erosion(copy.labels > 0, iterations=2)
    assert np.median(change[deep]) == pytest.approx(sign * strength * (WHITE - GREY), rel=0.05)


def test_a_texture_keeps_the_mean_and_is_weaker_on_coarse_voxels():
    copy, change = painted("texture", 4.0, 0.8)
    deep = ndimage.binary_erosion(copy.labels > 0, iterations=1)
    assert abs(change[deep].mean()) < 0.2 * change[deep].std()
    # Voxels of 2 mm average the grain of 0.8 mm, unless those of the scan were as coarse.
    assert 0.3 < change[deep].std() / (0.8 * (WHITE - GREY)) < 0.8
    copy, change = painted("texture", 4.0, 0.8, on=replace(BRAIN, scan_mm=2.0))
    deep = ndimage.binary_erosion(copy.labels > 0, iterations=1)
    assert 0.85 < change[deep].std() / (0.8 * (WHITE - GREY)) < 1.15


def test_lesions_of_the_border_lie_on_it_and_the_others_in_tissue():
    for seed in range(4):
        for kind in KINDS.values():
            copy, _ = painted(kind.name, 0.6, kind.usual, seed)
            core = copy.labels > 0
            grey, white = BRAIN.grey[core].mean(), BRAIN.white[core].mean()
            assert grey + white >= 0.8
            if kind.on_border:
                assert min(grey, white) >= 0.25 and copy.lesions[0].tissue in ("both", "grey matter", "white matter")
    deep = replace(BRAIN, scored=ndimage.binary_erosion(BRAIN.white, iterations=4))
    assert painted("dark", 0.1, 0.5, on=deep)[0].lesions[0].tissue == "white matter"


def test_lesions_of_a_copy_are_apart_and_a_copy_is_reproducible():
    def once():
        random = np.random.default_rng(5)
        return paint_copy(BRAIN, wanted_lesions(random, 0, 8), random)

    one, two = once(), once()
    np.testing.assert_array_equal(one.image.voxels, two.image.voxels)
    assert one.lesions == two.lesions and len(one.lesions) >= 2
    for number in range(1, len(one.lesions) + 1):
        away_mm = ndimage.distance_transform_edt(one.labels != number, sampling=2.0)
        others = (one.labels > 0) & (one.labels != number)
        assert away_mm[others].min() >= 0.8 * APART_MM


def test_kinds_take_turns_and_sizes_and_strengths_fill_their_ranges():
    wanted = wanted_lesions(np.random.default_rng(0), 2, 1000)
    assert [lesion.kind for lesion in wanted[:6]] == [*list(KINDS)[2:], *list(KINDS)[:3]]
    assert np.log([lesion.ml for lesion in wanted]).mean() == pytest.approx(np.log(0.03 * 10) / 2, abs=0.15)
    for lesion in wanted:
        assert KINDS[lesion.kind].weakest <= lesion.strength <= KINDS[lesion.kind].strongest


def test_a_lesion_without_a_place_is_left_out():
    nowhere = replace(BRAIN, scored=np.zeros(SIZE, bool))
    assert paint_copy(nowhere, [WantedLesion("dark", 1.0, 1.0)], np.random.default_rng(0)).lesions == ()
    with_little = replace(
        BRAIN, brain_mask=BRAIN.brain_mask.with_voxels(BRAIN.brain_mask.voxels & (np.indices(SIZE)[0] < 12))
    )
    assert paint_copy(with_little, [WantedLesion("dark", 10.0, 1.0)], np.random.default_rng(0)).lesions == ()
