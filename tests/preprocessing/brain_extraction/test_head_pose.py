import numpy as np
import pytest
import SimpleITK as sitk
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.brain_extraction.head_pose import TemplateFit, fit_template
from voxout.preprocessing.registration.resampling import canonical, resample
from voxout.preprocessing.registration.template import load_template

UNMOVED = sitk.Transform(3, sitk.sitkIdentity)


@pytest.mark.parametrize(("degrees", "orientation"), [(8.0, "RAS"), (-25.0, "PSR")])
def test_fit_recovers_a_known_affine(degrees, orientation, kit):
    image, truth = kit.small_brain(orientation, degrees=degrees)
    image = canonical(image)
    mask = image.with_voxels(image.voxels > 0.02)
    fit = fit_template(image, mask)
    template = load_template(4.0)
    points = kit.millimetres(template.grid)[template.brain_mask.voxels][::50]
    error_mm = points @ (fit.affine - truth)[:3, :3].T + (fit.affine - truth)[:3, 3]
    assert np.linalg.norm(error_mm, axis=1).mean() < 2.5
    assert fit.overlap_with(mask) > 0.94


def test_tilt_is_the_angle_to_the_scan_axes(kit):
    turn = kit.turned(20.0)
    scaled_and_sheared = turn @ np.array([[0.9, 0.05, 0, 3], [0.05, 1.1, 0, 4], [0, 0, 1.2, 5], [0, 0, 0, 1]])
    fit = TemplateFit(scaled_and_sheared)
    upright = Grid((9, 9, 9), np.diag([2.0, 1.0, 3.0, 1.0]))
    expected = np.degrees(np.arccos((np.trace(turn[:3, :3]) - 1) / 2))
    assert fit.tilt_degrees(upright) == pytest.approx(expected, abs=1e-6)
    assert fit.tilt_degrees(Grid((9, 9, 9), turn @ upright.affine)) == pytest.approx(0, abs=1e-4)


def test_upright_grid_aligns_the_brain_with_the_template(kit):
    image, truth = kit.small_brain(degrees=30.0)
    grid = TemplateFit(truth).upright_grid(4.0)
    copy = resample(image, grid, UNMOVED, "linear")
    assert copy.voxels.sum() * grid.voxel_volume_mm3 == pytest.approx(
        image.voxels.sum() * image.grid.voxel_volume_mm3, rel=0.01
    )
    straight = copy.with_voxels(copy.voxels > 0.2)
    # Along the grid axes, the extent is that of the template times the scale of the small brain.
    size_mm = [np.ptp(np.nonzero(straight.voxels)[axis]) * 4.0 for axis in range(3)]
    template = load_template(4.0).brain_mask.voxels
    assert size_mm == pytest.approx([0.93 * np.ptp(np.nonzero(template)[axis]) * 4.0 for axis in range(3)], abs=8)


def test_leaked_mask_has_low_overlap(kit):
    image, truth = kit.small_brain()
    brain = image.voxels > 0.02
    below = kit.ball(image.grid, (truth @ [0, 20, -90, 1])[:3], 50) & ~brain
    leaked = image.with_voxels(brain | below)
    head = image.with_voxels(np.where(below, 0.5, image.voxels).astype(np.float32))
    assert fit_template(head, leaked).overlap_with(leaked) < 0.89


def test_overlap_is_zero_outside_the_template():
    grid = Grid((8, 8, 8), np.diag([4.0, 4.0, 4.0, 1.0]))
    mask = Volume(np.ones(grid.size_vox, bool), grid)
    far = np.eye(4)
    far[:3, 3] = 1000
    assert TemplateFit(far).overlap_with(mask) == 0
