"""Painted lesions: exact lesion mask, requested change inside, no change elsewhere."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, read_mask, read_volume
from voxout.data_manifests.synthetic.lesion_effects import Shift
from voxout.data_manifests.synthetic.painted_lesions import (
    lesion_components,
    paint_lesion,
    tissue_thresholds,
    white_grey_contrast,
)

SIZE = (30, 28, 26)
GRID = Grid(SIZE, np.diag([1.0, 1.0, 2.0, 1.0]))


def flat(value=100.0) -> Volume:
    return Volume(np.full(SIZE, value, np.float32), GRID)


def box(*slices) -> Volume:
    voxels = np.zeros(SIZE, bool)
    voxels[tuple(slice(*s) for s in slices)] = True
    return Volume(voxels, GRID)


def alpha_of(shape: Volume, softness_mm: float) -> np.ndarray:
    return paint_lesion(flat(0), shape, Shift(1), softness_mm=softness_mm).image.voxels


def test_hard_edges_equal_the_shape():
    shape = box((5, 12), (6, 11), (7, 10))
    painted = paint_lesion(flat(), shape, Shift(-40), softness_mm=0)
    np.testing.assert_array_equal(painted.lesion_mask.voxels, shape.voxels)
    np.testing.assert_array_equal(painted.image.voxels, np.where(shape.voxels, 60, 100))


def test_straight_edge_equals_gaussian_blur():
    """Half a voxel from the face of a wide block, alpha is the cumulative normal distribution at 0.5 mm."""
    block = np.zeros((60, 60, 60), bool)
    block[10:50, 10:50, 10:50] = True
    grid = Grid(block.shape, np.eye(4))
    blank = Volume(np.zeros(block.shape, np.float32), grid)
    alpha = paint_lesion(blank, Volume(block, grid), Shift(1), softness_mm=1).image.voxels
    np.testing.assert_allclose(alpha[8:13, 30, 30], [0.0668, 0.3085, 0.6915, 0.9332, 0.9938], atol=0.01)


def test_softness_is_in_millimetres():
    wide = alpha_of(box((10, 20), (9, 19), (8, 18)), softness_mm=2)
    along_x, along_z = wide[:, 14, 13], wide[15, 14, :]
    share = [(line > 0.02).sum() - (line > 0.98).sum() for line in (along_x, along_z)]
    assert share[0] >= 1.5 * share[1]  # 2 mm are two voxels along x, one along z


@settings(max_examples=30, deadline=None)
@given(
    corner=st.tuples(*[st.integers(2, 18)] * 3),
    edges=st.tuples(*[st.integers(1, 8)] * 3),
    softness_mm=st.floats(0.3, 3),
    change=st.sampled_from([-80.0, -30.0, 50.0]),
)
@example(corner=(2, 2, 2), edges=(1, 4, 8), softness_mm=1.125, change=-80.0)
def test_full_change_and_volume_for_any_size(corner, edges, softness_mm, change):
    shape = box(*((c, min(c + e, n)) for c, e, n in zip(corner, edges, SIZE, strict=True)))
    painted = paint_lesion(flat(), shape, Shift(change), softness_mm=softness_mm)
    difference = painted.image.voxels - 100
    assert difference.flat[np.abs(difference).argmax()] == pytest.approx(change, abs=1e-4)
    truth = painted.lesion_mask.voxels
    np.testing.assert_array_equal(truth, np.abs(difference) >= abs(change) / 2 - 1e-4)
    # Voxels of equal alpha are included or excluded together: the volume may differ by one such set. A set of mirrored
    # voxels has eight; along the long edges of a thin plate, all voxels except those near the corners are equal.
    alpha = np.abs(difference) / abs(change)
    ties = np.isclose(alpha, alpha[truth].min(), atol=1e-3).sum()
    assert abs(int(truth.sum()) - int(shape.voxels.sum())) <= max(ties, 8) + 0.05 * shape.voxels.sum()
    assert (truth & shape.voxels).any()


def test_distant_voxels_are_unchanged():
    image = flat().with_voxels(np.random.default_rng(0).normal(0, 50, SIZE).astype(np.float32))
    shape = box((10, 14), (10, 14), (10, 14))
    painted = paint_lesion(image, shape, Shift(-30), softness_mm=1).image.voxels
    far = ndimage.distance_transform_edt(~shape.voxels, sampling=GRID.spacing_mm) > 8
    assert far.any()
    np.testing.assert_array_equal(painted[far], image.voxels[far])


def test_not_below_zero_where_painted():
    image = flat(10)
    image.voxels[0, 0, 0] = -5  # from an earlier interpolation, must be kept
    painted = paint_lesion(image, box((10, 16), (10, 16), (10, 16)), Shift(-30), softness_mm=1).image.voxels
    assert painted[13, 13, 13] == 0
    assert painted[0, 0, 0] == -5 and np.delete(painted.ravel(), 0).min() == 0


def test_small_part_next_to_a_large_one_reaches_the_full_change():
    shape = box((4, 14), (4, 14), (4, 14))
    shape.voxels[22, 22, 22] = True
    painted = paint_lesion(flat(), shape, Shift(-50), softness_mm=1.5)
    assert painted.image.voxels[22, 22, 22] == pytest.approx(50)
    assert painted.lesion_mask.voxels[22, 22, 22]


def test_at_the_edge_of_the_scan():
    shape = box((0, 3), (25, 28), (0, 26))
    alpha = alpha_of(shape, softness_mm=1)
    assert alpha.shape == SIZE and alpha.max() == 1
    padded = Volume(np.pad(shape.voxels, 8), Grid(tuple(n + 16 for n in SIZE), GRID.affine))
    inner = paint_lesion(
        Volume(np.zeros(padded.grid.size_vox, np.float32), padded.grid), padded, Shift(1), softness_mm=1
    )
    np.testing.assert_allclose(alpha, inner.image.voxels[8:-8, 8:-8, 8:-8], atol=1e-6)


def test_resampled_shape_keeps_its_volume():
    shape = Volume(ndimage.shift(box((8, 14), (8, 14), (8, 14)).voxels.astype(np.float32), 0.37, order=1), GRID)
    truth = paint_lesion(flat(), shape, Shift(-50), softness_mm=0.7).lesion_mask.voxels
    assert truth.sum() == pytest.approx(shape.voxels.sum(), rel=0.05)


def test_resampling_residues_are_ignored():
    shape = Volume(np.zeros(SIZE, np.float32), GRID)
    shape.voxels[10:14, 10:14, 10:14] = 1
    shape.voxels[20, 20, 20] = 0.01
    shape.voxels[25, 5, 5] = -0.2
    assert not alpha_of(shape, softness_mm=0.5)[20:].any()
    shape.voxels[:15] = 0
    with pytest.raises(ValueError, match="the shape is empty"):
        alpha_of(shape, softness_mm=0.5)


def test_shape_that_fills_the_scan():
    alpha = alpha_of(Volume(np.ones(SIZE, bool), GRID), softness_mm=0)
    assert (alpha == 1).all()


def test_painting_is_deterministic_and_keeps_its_inputs():
    image, shape = flat(), box((10, 14), (10, 14), (10, 14))
    one, two = (paint_lesion(image, shape, Shift(-30), softness_mm=1) for _ in range(2))
    np.testing.assert_array_equal(one.image.voxels, two.image.voxels)
    assert (image.voxels == 100).all() and shape.voxels.sum() == 64


def test_invalid_arguments():
    with pytest.raises(ValueError, match="the shape is empty"):
        paint_lesion(flat(), box((0, 0), (0, 0), (0, 0)), Shift(-1), softness_mm=1)
    with pytest.raises(ValueError, match="different grids"):
        paint_lesion(flat(), Volume(np.ones((3, 3, 3), bool), Grid((3, 3, 3), np.eye(4))), Shift(-1), softness_mm=1)


# -- contrast --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1, 1000])
def test_contrast_of_three_tissues(scale):
    rng = np.random.default_rng(0)
    tissue = rng.choice([20.0, 60.0, 90.0], p=[0.15, 0.5, 0.35], size=SIZE)
    voxels = scale * (tissue + rng.normal(0, 4, SIZE))
    voxels[0] = 1e6 * scale  # outside the mask
    voxels[1, 1, 1] = 1e6 * scale  # one vessel inside
    inside = np.ones(SIZE, bool)
    inside[0] = False
    assert white_grey_contrast(Volume(voxels, GRID), Volume(inside, GRID)) == pytest.approx(30 * scale, rel=0.05)
    low, high = tissue_thresholds(Volume(voxels, GRID), Volume(inside, GRID))
    assert 20 * scale < low < 60 * scale < high < 90 * scale


@pytest.mark.parametrize("covered", [True, False])
def test_contrast_without_three_tissues(covered):
    with pytest.raises(UserError, match="fewer than three intensities"):
        white_grey_contrast(flat(), Volume(np.full(SIZE, covered), GRID))


# -- components ------------------------------------------------------------------------------------------------------
def on_full_grid(part: Volume, grid: Grid) -> np.ndarray:
    """Return the component on the grid of the full mask."""
    voxels = np.zeros(grid.size_vox, bool)
    into_grid = np.linalg.inv(grid.affine) @ part.affine
    index = into_grid @ np.vstack([part.voxels.nonzero(), np.ones(part.voxels.sum())])
    voxels[tuple(np.round(index[:3]).astype(int))] = True
    return voxels


def test_components_are_26_connected_and_within_limits():
    voxels = np.zeros(SIZE, bool)
    voxels[2, 2, 2] = voxels[3, 3, 3] = True  # two voxels, connected by a corner
    voxels[10:15, 10:15, 10:15] = True  # 125
    voxels[20:22, 20, 20] = True  # 2
    voxels[25, 25, 25] = True  # 1
    mask = Volume(voxels, GRID)  # voxels of 2 mm3
    parts = lesion_components(mask, smallest_ml=0.004, largest_ml=0.2)
    assert [int(p.voxels.sum()) for p in parts] == [2, 2]
    assert parts[0].voxels.shape == (6, 6, 6) and parts[1].voxels.shape == (6, 5, 5)
    assert on_full_grid(parts[0], GRID)[2, 2, 2] and on_full_grid(parts[0], GRID)[3, 3, 3]
    assert len(lesion_components(mask, smallest_ml=0, largest_ml=1)) == 4
    assert lesion_components(mask.with_voxels(np.zeros(SIZE, bool)), smallest_ml=0, largest_ml=1) == []


@given(seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_components_partition_the_mask(seed):
    voxels = np.random.default_rng(seed).random((8, 8, 8)) > 0.8
    turned = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, -9], [0, 0, 1.5, 30], [0, 0, 0, 1]])
    grid = Grid((8, 8, 8), turned)
    parts = lesion_components(Volume(voxels, grid), smallest_ml=0, largest_ml=10)
    np.testing.assert_array_equal(
        sum((on_full_grid(p, grid).astype(int) for p in parts), np.zeros((8, 8, 8), int)), voxels
    )
    assert len(parts) == ndimage.label(voxels, np.ones((3, 3, 3)))[1]


# -- real scans ------------------------------------------------------------------------------------------------------
def test_real_lesion_in_a_real_head(shared_data):
    key = "sub-IXI012"
    t1w = read_volume(shared_data / "ixi" / key / "anat" / f"{key}_T1w.nii.gz")
    brain = read_mask(shared_data / "ixi/derivatives/reference" / key / "anat" / f"{key}_desc-brain_mask.nii.gz")
    contrast = white_grey_contrast(t1w, brain)
    typical = np.median(t1w.voxels[brain.voxels])
    assert 0.15 < contrast / typical < 0.6
    drawn = read_mask(shared_data / "lesion_masks" / "ms" / "patient21_lesion.nii.gz")
    lesion = max(lesion_components(drawn, smallest_ml=0.05, largest_ml=3), key=lambda part: part.voxels.sum())
    corner = [int(axis.min()) for axis in lesion.voxels.nonzero()]
    shape = np.zeros(t1w.grid.size_vox, bool)
    depth = ndimage.distance_transform_edt(brain.voxels)
    centre = np.unravel_index(np.argmax(depth), depth.shape)
    for index in zip(*lesion.voxels.nonzero(), strict=True):  # 1 mm onto 2 mm
        shape[tuple(c + (i - k) // 2 for c, i, k in zip(centre, index, corner, strict=True))] = True
    painted = paint_lesion(t1w, t1w.with_voxels(shape), Shift(-contrast), softness_mm=1)
    truth = painted.lesion_mask.voxels
    assert truth.sum() == pytest.approx(shape.sum(), abs=3)
    darker = (t1w.voxels - painted.image.voxels)[truth]
    assert darker.max() == pytest.approx(contrast, rel=1e-3) and darker.min() >= 0.49 * contrast
