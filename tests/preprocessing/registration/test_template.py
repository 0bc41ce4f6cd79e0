import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.preprocessing.registration import template as template_module
from voxout.preprocessing.registration.template import load_template


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0, 4.0])
def test_images_share_one_ras_grid_with_values_in_0_to_1(spacing_mm):
    template = load_template(spacing_mm)
    assert template.grid.orientation == "RAS"
    assert template.grid.spacing_mm == pytest.approx([spacing_mm] * 3)
    for image in (template.t1w, template.grey, template.white):
        assert image.grid.same_as(template.brain_mask.grid)
        assert image.voxels.min() >= 0 and image.voxels.max() <= 1
    assert np.array_equal(template.t1w.voxels > 0, template.brain_mask.voxels)


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0, 4.0])
def test_volume_and_symmetry_at_every_resolution(spacing_mm):
    template = load_template(spacing_mm)
    assert template.brain_mask.voxels.sum() * spacing_mm**3 / 1000 == pytest.approx(1886.5, rel=0.005)
    assert np.array_equal(template.brain_mask.voxels, template.brain_mask.voxels[::-1])
    middle = template.grid.affine[0, 3] + (template.grid.size_vox[0] - 1) * spacing_mm / 2
    assert middle == pytest.approx(0)


def test_anatomical_positions():
    template = load_template(2.0)
    white = template.white

    def at(x, y, z):
        index = np.linalg.solve(white.affine, [x, y, z, 1])[:3].round().astype(int)
        return tuple(index)

    assert white.voxels[at(0, 24, 6)] > 0.5  # genu of the corpus callosum
    assert template.t1w.voxels[at(0, 24, 6)] > 0.6
    assert template.grey.voxels[at(-12, 10, 8)] > 0.5  # left caudate
    assert not template.brain_mask.voxels[at(0, 90, 0)]


def test_margin_around_the_brain():
    mask = load_template(2.0).brain_mask.voxels
    edges = [np.take(mask, end, axis).any() for axis in range(3) for end in range(-3, 3)]
    assert not any(edges)


def test_load_template_is_cached():
    assert load_template(4.0) is load_template(4.0)


def test_error_for_a_wheel_without_the_template(monkeypatch):
    monkeypatch.setattr(template_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="does not contain the MNI152 template"):
        load_template(4.25)
