import numpy as np
import pytest
import SimpleITK as sitk
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.brain_extraction.head_pose import TemplateFit, fit_template
from voxout.preprocessing.registration.resampling import canonical, resample
from voxout.preprocessing.registration.template import load_template

UNMOVED = sitk.Transform(3, sitk.sitkIdentity)


@pytest.mark.parametrize(("degrees", "orientation"), [(8.0, "RAS"), (-25.0, "PSR")])
def test_a_known_place_is_found(degrees, orientation, kit):
    image, truth = kit.small_brain(orientation, degrees=degrees)
    image = canonical(image)
    mask = image.with_voxels(image.voxels > 0.02)
    fit = fit_template(image, mask)
    template = load_template(4.0)
    points = kit.millimetres(template.grid)[template.brain_mask.voxels][::50]
    apart = points @ (fit.affine - truth)[:3, :3].T + (fit.affine - truth)[:3, 3]
    assert np.linalg.norm(apart, axis=1).mean() < 2.5
    assert fit.overlap_with(mask) > 0.94


def test_the_tilt_is_the_angle_to_the_axes_of_the_scan(kit):
    turn = kit.turned(20.0)
    scaled_and_sheared = turn @ np.array([[0.9, 0.05, 0, 3], [0.05, 1.1, 0, 4], [0, 0, 1.2, 5], [0, 0, 0, 1]])
    fit = TemplateFit(scaled_and_sheared)
    upright = Grid((9, 9, 9), np.diag([2.0, 1.0, 3.0, 1.0]))
    expected = np.degrees(np.arccos((np.trace(turn[:3, :3]) - 1) / 2))
    assert fit.tilt_degrees(upright) == pytest.approx(expected, abs=1e-6)
    assert fit.tilt_degrees(Grid((9, 9, 9), turn @ upright.affine)) == pytest.approx(0, abs=1e-4)


def test_in_the_upright_copy_the_brain_stands_as_the_template_does(kit):
    image, truth = kit.small_brain(degrees=30.0)
    grid = TemplateFit(truth).upright_grid(4.0)
    copy = resample(image, grid, UNMOVED, "linear")
    assert copy.voxels.sum() * grid.voxel_volume_mm3 == pytest.approx(
        image.voxels.sum() * image.grid.voxel_volume_mm3, rel=0.01
    )
    straight = copy.with_voxels(copy.voxels > 0.2)
    # Along the axes of its own grid the brain is the template's, but for the scale of the small brain.
    size_mm = [np.ptp(np.nonzero(straight.voxels)[axis]) * 4.0 for axis in range(3)]
    template = load_template(4.0).brain_mask.voxels
    assert size_mm == pytest.approx([0.93 * np.ptp(np.nonzero(template)[axis]) * 4.0 for axis in range(3)], abs=8)


def test_what_is_no_brain_does_not_fit(kit):
    image, truth = kit.small_brain()
    brain = image.voxels > 0.02
    below = kit.ball(image.grid, (truth @ [0, 20, -90, 1])[:3], 50) & ~brain
    leaked = image.with_voxels(brain | below)
    head = image.with_voxels(np.where(below, 0.5, image.voxels).astype(np.float32))
    assert fit_template(head, leaked).overlap_with(leaked) < 0.89


def test_a_place_without_a_template_is_a_place_without_overlap():
    grid = Grid((8, 8, 8), np.diag([4.0, 4.0, 4.0, 1.0]))
    mask = Volume(np.ones(grid.size_vox, bool), grid)
    far = np.eye(4)
    far[:3, 3] = 1000
    assert TemplateFit(far).overlap_with(mask) == 0
