import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.figures.colour_scale import ColourScale, colour_bar
from voxout.evaluation.figures.mosaic import TILE_HEIGHT_PX, point_picture, subject_mosaic, webp
from voxout.evaluation.figures.slices import NORMAL, PLANES, Head
from voxout.evaluation.metrics.voxel_metrics import ScoreHistogram

SCALE = ColourScale(1.0, 2.0)


def head(affine=None):
    """Asymmetric brain: the map is bright in the right front, the lesion is in the left back."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    x, y, z = np.indices((40, 50, 44)) - np.array([20, 25, 22])[:, None, None, None]
    brain = (x / 16) ** 2 + (y / 21) ** 2 + (z / 18) ** 2 < 1
    scan = np.where(brain, 100 + x + 0.5 * y, 0).astype(np.float32)
    scores = np.where((x > 6) & (x < 12) & (y > 5) & (y < 12) & (abs(z) < 4), 3.0, 0.0).astype(np.float32)
    lesion = (x < -6) & (x > -12) & (y < -5) & (y > -12) & (abs(z) < 4)
    grid = Grid(brain.shape, affine)
    return [Volume(voxels, grid) for voxels in (scan, scores, brain, lesion)]


def asymmetric():
    """As `head`, but with the map in the upper right front and the lesion in the lower left back, stored as LAS."""
    scan, _, brain, _ = head()
    x, y, z = np.indices(brain.voxels.shape) - np.array([20, 25, 22])[:, None, None, None]
    bright = (x > 5) & (x < 12) & (y > 5) & (y < 12) & (z > 5) & (z < 12)
    lesion = (x < -5) & (x > -12) & (y < -5) & (y > -12) & (z < -5) & (z > -12)
    centred = np.diag([2.0, 2.0, 2.0, 1.0])
    centred[:3, 3] = [-40, -50, -44]
    volumes = [scan.voxels, np.where(bright, 3, 0).astype(np.float32), brain.voxels, lesion]
    stored = [reoriented(Volume(voxels, Grid(brain.voxels.shape, centred)), "LAS") for voxels in volumes]
    return Head.from_volumes(stored[0], stored[1], SCALE, brain_mask=stored[2], lesion_mask=stored[3])


def reoriented(volume, axcodes):
    image = nib.Nifti1Image(np.asarray(volume.voxels, np.float32), volume.affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = image.as_reoriented(turn)
    voxels = np.asarray(turned.dataobj).astype(volume.voxels.dtype)
    return Volume(voxels, Grid(voxels.shape, turned.affine))


def tile_with(picture, test):
    """Mean (row, column) in [0, 1] within the tile of the pixels of the lower row that pass a test."""
    lower = picture[TILE_HEIGHT_PX : 2 * TILE_HEIGHT_PX].astype(int)
    rows, columns = np.nonzero(test(lower))
    width = picture.shape[1] / 7
    return rows.mean() / TILE_HEIGHT_PX, (columns % width).mean() / width


def is_yellow(rgb):
    return (rgb[..., 0] > 200) & (rgb[..., 0] > rgb[..., 2] + 40)


def is_cyan(rgb):
    return (rgb[..., 2] > 200) & (rgb[..., 0] < 60)


def test_the_patients_right_is_on_the_left_and_the_front_is_up():
    scan, map, brain, lesion = head()
    picture, alt = subject_mosaic(Head.from_volumes(scan, map, SCALE, brain_mask=brain, lesion_mask=lesion))
    row, column = tile_with(picture, is_yellow)
    assert row < 0.5 and column < 0.5
    row, column = tile_with(picture, is_cyan)
    assert row > 0.5 and column > 0.5
    assert "outlined in cyan" in alt


@pytest.mark.parametrize("axcodes", ["LPS", "LAS", "PIR", "SRA", "AIL"])
def test_pictures_do_not_depend_on_the_stored_orientation(axcodes):
    volumes = head()
    plain, _ = subject_mosaic(Head.from_volumes(*volumes[:2], SCALE, brain_mask=volumes[2], lesion_mask=volumes[3]))
    scan, map, brain, lesion = (reoriented(v, axcodes) for v in volumes)
    turned, _ = subject_mosaic(Head.from_volumes(scan, map, SCALE, brain_mask=brain, lesion_mask=lesion))
    np.testing.assert_array_equal(turned, plain)


def test_coronal_slices_have_the_right_on_the_left_and_the_top_up():
    head_ = asymmetric()
    picture, alt = subject_mosaic(head_, "coronal")
    row, column = tile_with(picture, is_yellow)
    assert row < 0.5 and column < 0.5 and "coronal" in alt
    row, column = tile_with(picture, is_cyan)
    assert row > 0.5 and column > 0.5


def test_sagittal_slices_have_the_front_on_the_right_and_the_top_up():
    picture, _ = subject_mosaic(asymmetric(), "sagittal")
    row, column = tile_with(picture, is_yellow)
    assert row < 0.5 and column > 0.5
    row, column = tile_with(picture, is_cyan)
    assert row > 0.5 and column < 0.5


def test_the_crosshair_marks_the_peak():
    head_ = asymmetric()
    picture, alt = point_picture(head_, np.array([18.0, 18.0, 16.0]))
    below = picture[TILE_HEIGHT_PX : 2 * TILE_HEIGHT_PX].astype(int)
    assert "18, 18, 16 mm" in alt
    # The bright block surrounds the point, and the gap of each crosshair is on it.
    index, left = head_.index_of(np.array([18.0, 18.0, 16.0])), 0
    for plane in PLANES:
        width = head_.tile(plane, int(index[NORMAL[plane]]), TILE_HEIGHT_PX)[0].shape[1]
        across, down = head_.place_in_tile(plane, index)
        assert is_yellow(below[int(down * TILE_HEIGHT_PX), left + int(across * width)]), plane
        left += width
    assert left == picture.shape[1]


def test_missing_and_low_scores_are_not_coloured():
    scan, map, brain, _ = head()
    covered = map.with_voxels(map.voxels < 1)
    picture, _ = subject_mosaic(Head.from_volumes(scan, map, SCALE, brain_mask=brain, covered=covered))
    assert not is_yellow(picture.astype(int)).any()
    quiet, _ = subject_mosaic(Head.from_volumes(scan, map.with_voxels(map.voxels * 0.3), SCALE, brain_mask=brain))
    assert not is_yellow(quiet.astype(int)).any()


def test_thick_slices_and_maps_without_a_peak_are_drawn():
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    volume = Volume(np.random.default_rng(0).random((30, 30, 8)).astype(np.float32), Grid((30, 30, 8), affine))
    picture, _ = subject_mosaic(Head.from_volumes(volume, volume.with_voxels(np.zeros_like(volume.voxels)), SCALE))
    assert picture.dtype == np.uint8 and picture.shape[1] > 500


def test_the_scale_of_a_cohort_is_robust_to_an_outlier():
    class Scored:
        def __init__(self, scores):
            self.histogram = ScoreHistogram.from_voxels(scores, np.zeros(len(scores), bool))

    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    outlier = values.copy()
    outlier[0] = 1e6
    plain, moved = ColourScale.of_cohort([Scored(values)]), ColourScale.of_cohort([Scored(outlier)])
    assert (plain.low, plain.high) == (pytest.approx(1.88, abs=0.1), pytest.approx(3.4, abs=0.4))
    assert moved.high == pytest.approx(plain.high, abs=0.3)
    flat = ColourScale.of_maps([np.zeros(10)])
    assert flat.high > flat.low


def test_pictures_respect_the_size_limit():
    picture = np.random.default_rng(0).integers(0, 255, (200, 900, 3)).astype(np.uint8)
    small = webp(picture, 20_000)
    assert len(small) < 30_000
    with Image.open(io.BytesIO(small)) as image:
        assert image.format == "WEBP"
    assert colour_bar(SCALE).shape == (14, 220, 3)
