"""Tests of the calibration to the age."""

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.ages import FEWEST_EFFECTIVE, AgeCalibration
from voxout.models.anomaly.calibration import calibrate
from voxout.preprocessing.patches.voxel_mask import VoxelMask

RANDOM = np.random.default_rng(3)
MASK = VoxelMask(Grid((12, 12, 12), np.diag([4.0, 4.0, 4.0, 1.0])), np.ones((12, 12, 12), bool))
CONTROLS = 80
AGES = np.linspace(20, 80, CONTROLS)
FOLDS = [np.arange(first, CONTROLS, 5) for first in range(5)]
INSIDE = np.ones((CONTROLS, MASK.size), bool)


def exponential(ages: np.ndarray) -> np.ndarray:
    """-log10 p of healthy brains: as they should be at 20, and twice as high at 80."""
    return (RANDOM.exponential(size=(len(ages), MASK.size)) * (1 + (ages - 20) / 60)[:, None] / np.log(10)).astype("f4")


def fitted(null: np.ndarray, ages=AGES, years: float = 10.0) -> AgeCalibration | None:
    return AgeCalibration.fit(null, INSIDE, FOLDS, MASK, list(ages), years, lambda: np.empty(null.shape, np.float32))


def share_above(values: np.ndarray, level: float = 2.0) -> float:
    return float((values > level).mean())


def test_old_and_young_brains_exceed_a_level_equally_often():
    null = exponential(AGES)
    old, young = AGES > 65, AGES < 35
    everyone, _ = calibrate(null, INSIDE, FOLDS, MASK)
    before = everyone.neg_log10_p(null)
    assert share_above(before[old]) > 5 * share_above(before[young]), "else there is nothing to mend"
    matched = fitted(null)
    assert matched is not None and list(matched.ages) == [20, 30, 40, 50, 60, 70, 80]
    for group in (old, young):
        assert share_above(null[group]) == pytest.approx(0.01, rel=0.35), "the null is overwritten"
    # New brains, which nothing was fitted on.
    for age in (25.0, 50.0, 75.0):
        new = matched.neg_log10_p(exponential(np.full(40, age)), age)
        assert share_above(new) == pytest.approx(0.01, rel=0.35), age


def test_between_two_ages_it_is_their_mean_and_beyond_them_that_of_the_last():
    matched = fitted(exponential(AGES))
    assert matched is not None
    values = exponential(AGES[:3])
    at = {age: matched.neg_log10_p(values, age) for age in (0.0, 20.0, 50.0, 53.0, 60.0, 80.0, 120.0)}
    np.testing.assert_allclose(at[53.0], 0.7 * at[50.0] + 0.3 * at[60.0], rtol=1e-5)
    np.testing.assert_array_equal(at[0.0], at[20.0])
    np.testing.assert_array_equal(at[120.0], at[80.0])
    assert (
        np.diff(np.stack([matched.neg_log10_p(v * np.ones(MASK.size, "f4"), 53.0) for v in (0.5, 1, 4)]), axis=0) > 0
    ).all()


def test_ages_around_which_there_are_too_few_are_left_out():
    ages = np.concatenate([np.linspace(20, 50, CONTROLS - 2), [79.0, 80.0]])
    matched = fitted(exponential(ages), ages)
    assert matched is not None and matched.ages[0] == 20 and 50 <= matched.ages[-1] <= 60
    assert matched.warnings(30) == () == matched.warnings(matched.ages[-1] + 4)
    assert matched.warnings(80) == (
        f"there are too few controls around age 80, so the map is calibrated for age {matched.ages[-1]:g}",
    )
    assert matched.warnings(None) == ("age is not given, so the map is calibrated on controls of all ages",)


@pytest.mark.parametrize("known", [0, FEWEST_EFFECTIVE - 1, CONTROLS])
def test_without_ages_nothing_is_changed(known):
    ages = [*AGES[:known], *[None] * (CONTROLS - known)]
    null = exponential(AGES)
    before = null.copy()
    assert fitted(null, ages, years=0.0 if known == CONTROLS else 10.0) is None
    np.testing.assert_array_equal(null, before)


def test_controls_without_an_age_stay_as_they_are():
    ages = [*AGES[:-5], *[None] * 5]
    null = exponential(AGES)
    before = null.copy()
    assert fitted(null, ages) is not None
    np.testing.assert_array_equal(null[-5:], before[-5:])
    assert (null[:-5] != before[:-5]).any(axis=1).all()


def test_a_saved_calibration_is_the_same(tmp_path):
    matched = fitted(exponential(AGES))
    assert matched is not None
    path = matched.save(tmp_path / "ages.safetensors")
    values = exponential(AGES[:2])
    np.testing.assert_array_equal(
        AgeCalibration.load(path).neg_log10_p(values, 44.0), matched.neg_log10_p(values, 44.0)
    )
    AgeCalibration(matched.ages[::-1].copy(), matched.calibrations).save(path)
    with pytest.raises(UserError, match="calibration to the age"):
        AgeCalibration.load(path)
