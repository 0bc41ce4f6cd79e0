import numpy as np
import pytest
from voxout.preprocessing.intensity.bias_field import correct_bias_field
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.settings import BiasFieldSettings

COARSE = BiasFieldSettings(working_spacing_mm=8.0)


@pytest.fixture(scope="module")
def shaded(kit):
    template = load_template(4.0)
    x, y, z = np.moveaxis(kit.millimetres(template.grid), -1, 0)
    field = np.exp(0.3 * x / 70 - 0.25 * (y + 18) / 90 + 0.15 * np.sin(z / 50))
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(field.shape)
    clean = template.t1w.with_voxels((500 * template.t1w.voxels * noise).astype(np.float32))
    return template, clean, clean.with_voxels((clean.voxels * field).astype(np.float32)), field


@pytest.fixture(scope="module")
def corrected(shaded):
    template, _, scan, _ = shaded
    return correct_bias_field(scan, template.brain_mask, COARSE)


def test_known_field_is_corrected(shaded, corrected):
    template, _, scan, field = shaded
    inside = template.brain_mask.voxels & (scan.voxels > 0)
    estimated = np.log(scan.voxels[inside] / corrected.voxels[inside])
    truth = np.log(field[inside])
    assert np.corrcoef(estimated, truth)[0, 1] > 0.95
    white = template.white.voxels > 0.95
    variation = [v.voxels[white].std() / v.voxels[white].mean() for v in (scan, corrected)]
    assert variation[1] < 0.4 * variation[0]


def test_mean_brightness_is_preserved(shaded, corrected):
    template, _, scan, _ = shaded
    inside = template.brain_mask.voxels & (scan.voxels > 0)
    ratio = np.log(corrected.voxels[inside] / scan.voxels[inside])
    assert ratio.mean() == pytest.approx(0, abs=0.01)


def test_voxels_outside_the_mask_are_ignored(shaded, corrected):
    template, _, scan, _ = shaded
    fat = scan.with_voxels(np.where(template.brain_mask.voxels, scan.voxels, 5000).astype(np.float32))
    inside = template.brain_mask.voxels
    with_fat = correct_bias_field(fat, template.brain_mask, COARSE)
    np.testing.assert_allclose(with_fat.voxels[inside], corrected.voxels[inside], rtol=1e-4)


def test_correction_is_reproducible(shaded, corrected):
    template, _, scan, _ = shaded
    assert np.array_equal(correct_bias_field(scan, template.brain_mask, COARSE).voxels, corrected.voxels)


def test_disabled_correction_returns_the_image(shaded):
    template, _, scan, _ = shaded
    assert correct_bias_field(scan, template.brain_mask, BiasFieldSettings(enabled=False)) is scan
