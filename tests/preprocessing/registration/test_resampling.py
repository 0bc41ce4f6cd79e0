import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.registration import resampling
from voxout.preprocessing.registration.resampling import blurred_for, canonical, coarsened, continued_outwards, resample

ORIENTATIONS = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]
IDENTITY = sitk.Transform(3, sitk.sitkIdentity)


@pytest.fixture(scope="module")
def oblique(kit):
    affine = kit.turned(11.0, (-20.0, 30.0, 5.0)) @ np.diag([2.0, 1.5, 3.0, 1.0])
    voxels = np.random.default_rng(0).random((9, 12, 7)).astype(np.float32)
    return Volume(ndimage.gaussian_filter(voxels, 1), Grid((9, 12, 7), affine))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_canonical_round_trip_of_all_48_orientations(oblique, orientation, kit):
    stored = kit.stored_as(oblique, orientation)
    assert stored.grid.orientation == orientation
    there = canonical(stored)
    assert there.grid.orientation == "RAS"
    assert np.array_equal(there.voxels, oblique.voxels)
    assert there.affine == pytest.approx(oblique.affine)
    back = resampling.reoriented_like(there, stored.grid)
    assert np.array_equal(back.voxels, stored.voxels)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "ILA", "SAL"])
def test_resampling_is_independent_of_the_stored_orientation(oblique, orientation, kit):
    target = Grid((10, 10, 10), kit.turned(-4.0, oblique.affine[:3, 3] + 2) @ np.diag([1.5, 1.5, 1.5, 1]))
    plain = resample(oblique, target, IDENTITY, "linear").voxels
    stored = resample(kit.stored_as(oblique, orientation), target, IDENTITY, "linear").voxels
    assert plain.any()
    assert stored == pytest.approx(plain, abs=1e-5)


def test_linear_resampling_agrees_with_scipy(oblique, kit):
    target = Grid((8, 9, 10), kit.turned(25.0, oblique.affine[:3, 3] + 3) @ np.diag([1.0, 1.2, 1.4, 1]))
    indices = np.linalg.inv(oblique.affine) @ np.vstack([kit.millimetres(target).reshape(-1, 3).T, np.ones(720)])
    expected = ndimage.map_coordinates(oblique.voxels, indices[:3], order=1, cval=np.nan).reshape(target.size_vox)
    found = resample(oblique, target, IDENTITY, "linear").voxels
    inside = np.isfinite(expected)
    assert inside.sum() > 100
    assert found[inside] == pytest.approx(expected[inside], abs=1e-5)


def test_spline_overshoots_are_clipped():
    step = np.zeros((12, 12, 12), np.float32)
    step[6:] = 1
    volume = Volume(step, Grid((12, 12, 12), np.eye(4)))
    finer = Grid((22, 10, 10), np.diag([0.5, 1, 1, 1.0]))
    found = resample(volume, finer, IDENTITY, "bspline").voxels
    assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_resampled_masks_are_bool(interpolation, kit):
    grid = Grid((20, 20, 20), np.eye(4))
    mask = Volume(kit.ball(grid, (10, 10, 10), 6), grid)
    found = resample(mask, Grid((40, 40, 40), np.diag([0.5, 0.5, 0.5, 1.0])), IDENTITY, interpolation)
    assert found.voxels.dtype == bool
    assert found.voxels.sum() / 8 == pytest.approx(mask.voxels.sum(), rel=0.1)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8", "f4", "f8", ">i4"])
def test_nearest_preserves_type_and_exact_values(dtype, kit):
    # float32 is exact for integers up to 2^24, float64 up to 2^53.
    kind = np.dtype(dtype)
    largest = (
        2**53 - 1 if kind.kind == "f" and kind.itemsize == 8 else 2**24 if kind.kind == "f" else np.iinfo(kind).max
    )
    values = np.array([0, largest, largest - 1, largest - 2, largest // 3], kind)
    grid = Grid((9, 8, 7), kit.turned(8.0) @ np.diag([2.0, 3.0, 2.5, 1.0]))
    volume = Volume(values[np.random.default_rng(3).integers(0, 5, grid.size_vox)], grid)
    assert np.array_equal(resample(volume, grid, IDENTITY, "nearest").voxels, volume.voxels)
    moved = resample(volume, Grid((20, 20, 20), np.eye(4)), resampling.itk_affine(kit.turned(31.0)), "nearest").voxels
    assert moved.dtype == kind.newbyteorder("=")
    assert set(np.unique(moved)) == set(values)


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("degrees", [3.0, 17.0, 31.0])
def test_volume_of_each_lesion_is_preserved(spacing_mm, degrees, kit):
    grid = Grid((48, 48, 48), np.eye(4))
    millimetres = kit.millimetres(grid)
    thin = (np.abs(millimetres @ [0.2, 0.3, 0.933] - 34) < 1) & kit.ball(grid, (24, 24, 20), 9)
    parts = [thin, kit.ball(grid, (24, 24, 40), 5.2), kit.ball(grid, (8, 8, 8), 2.6)]
    assert parts[0].sum() > 300
    turn = resampling.itk_affine(np.linalg.inv(kit.turned(degrees)))
    size = int(80 / spacing_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -25
    target = Grid((size,) * 3, affine)
    found = resample(Volume(np.any(parts, axis=0), grid), target, turn, "volume")
    _, number = ndimage.label(found.voxels, np.ones((3, 3, 3)))
    assert number == len(parts)
    for part in parts:
        centre = kit.turned(degrees)[:3, :3] @ millimetres[part].mean(0)
        near = kit.ball(target, centre, 11)
        error_vox = found.voxels[near].sum() - part.sum() / spacing_mm**3
        assert abs(error_vox) <= 0.5 + 0.01 * part.sum() / spacing_mm**3


@pytest.mark.parametrize("gap", [1, 2])
def test_volumes_of_adjacent_lesions_are_preserved(gap):
    # Regression test: voxels between two lesions were counted for only one of them.
    grid = Grid((14, 11, 10), np.diag([2.0, 1.5, 3.0, 1.0]))
    mask = np.zeros(grid.size_vox, bool)
    mask[2:6, 2:8, 2:7] = True
    mask[6 + gap : 10, 3:9, 2:5] = True
    mask[10 + gap :, 2:5, 2:7] = True  # to the edge of the image
    assert np.array_equal(resample(Volume(mask, grid), grid, IDENTITY, "volume").voxels, mask)


def test_volume_interpolation_needs_a_mask_and_drops_tiny_parts():
    grid = Grid((12, 12, 12), np.eye(4))
    mask = np.zeros((12, 12, 12), bool)
    mask[5:7, 5, 5] = True
    coarse = Grid((4, 4, 4), np.diag([3.0, 3.0, 3.0, 1.0]))
    assert not resample(Volume(mask, grid), coarse, IDENTITY, "volume").voxels.any()
    mask[4:7, 4:7, 5:7] = True
    assert resample(Volume(mask, grid), coarse, IDENTITY, "volume").voxels.sum() == 1
    with pytest.raises(ValueError, match='interpolation "volume" requires a mask'):
        resample(Volume(mask.astype(np.float32), grid), coarse, IDENTITY, "volume")


def test_continued_outwards_fills_the_margin_from_the_brain(kit):
    grid = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    mask = kit.ball(grid, (20, 20, 20), 10)
    image = Volume(np.where(mask, 3.0, 100.0).astype(np.float32), grid)
    found = continued_outwards(image, Volume(mask, grid), 4.0).voxels
    distance = ndimage.distance_transform_edt(~mask, sampling=2.0)
    assert (found[distance <= 4] == 3).all()
    assert (found[distance > 4] == 0).all()


def test_blurred_for_smooths_only_fine_scans():
    noise = Volume(np.random.default_rng(1).standard_normal((30, 30, 30)), Grid((30, 30, 30), np.eye(4)))
    sigma = np.sqrt(3) / 2.3548
    # A Gaussian reduces the variance of white noise to (2 sqrt(pi) sigma)^-1 per axis.
    expected = (2 * np.sqrt(np.pi) * sigma) ** -3
    assert blurred_for(noise, 2.0).voxels.var() == pytest.approx(expected, rel=0.15)
    assert blurred_for(noise, 1.0) is noise


def test_coarsened_keeps_positions(kit):
    grid = Grid((40, 40, 20), kit.turned(7.0) @ np.diag([1.0, 1.0, 2.0, 1.0]))
    centre = grid.affine @ [20, 18, 9, 1]
    distance = np.linalg.norm(kit.millimetres(grid) - centre[:3], axis=-1)
    found = coarsened(Volume(np.exp(-((distance / 6) ** 2)).astype(np.float32), grid), 2.0)
    assert found.grid.spacing_mm == pytest.approx([2, 2, 2])
    weight = found.voxels / found.voxels.sum()
    assert (kit.millimetres(found.grid) * weight[..., None]).sum((0, 1, 2)) == pytest.approx(centre[:3], abs=0.05)
    assert coarsened(found, 2.0) is found


def test_refined_interpolates_thick_slices(kit):
    def wave(grid):
        return np.cos(kit.millimetres(grid) @ [0.1, -0.05, 0.12]).astype(np.float32)

    thick = Grid((30, 30, 13), kit.turned(7.0) @ np.diag([2.0, 2.0, 5.0, 1.0]))
    found = resampling.refined(Volume(wave(thick), thick), 1.0)
    assert found.grid.spacing_mm == pytest.approx([2, 2, 2]) and found.grid.size_vox == (30, 30, 31)
    inner = (slice(3, -3), slice(3, -3), slice(6, -6))  # Splines overshoot at the ends.
    assert found.voxels[inner] == pytest.approx(wave(found.grid)[inner], abs=0.02)
    # Not thinner than the given spacing, and unchanged if slices are hardly thicker than the voxels are wide.
    fine = Volume(wave(thick), Grid(thick.size_vox, np.diag([0.5, 0.5, 5.0, 1.0])))
    assert resampling.refined(fine, 1.0).grid.spacing_mm == pytest.approx([0.5, 0.5, 1.0])
    usual = Volume(wave(thick), Grid(thick.size_vox, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert resampling.refined(usual, 1.0) is usual


def test_largest_component_of_an_empty_mask():
    mask = np.zeros((4, 4, 4), bool)
    assert not resampling.largest_component(mask).any()
    mask[0, 0, :2] = mask[3, 3, 3] = True
    assert resampling.largest_component(mask).sum() == 2


@pytest.mark.parametrize("orientation", ["LPS", "PSR", "IRA"])
def test_canonical_agrees_with_monai(kit, orientation):
    from monai.transforms import Orientation

    image, _ = kit.small_brain(orientation)
    expected, found = Orientation("RAS")(image.to_metatensor()), canonical(image)
    np.testing.assert_array_equal(found.voxels, expected[0])
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("seed", range(4))
def test_largest_component_agrees_with_monai(seed):
    from monai.transforms import FillHoles, KeepLargestConnectedComponent

    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(20, 18, 16)), 1) > 0.05
    largest = resampling.largest_component(mask)
    expected = KeepLargestConnectedComponent(connectivity=1)(mask[None].astype(np.uint8))
    np.testing.assert_array_equal(largest, expected[0] > 0)
    filled = FillHoles(connectivity=1)(expected)
    np.testing.assert_array_equal(ndimage.binary_fill_holes(largest), filled[0] > 0)
