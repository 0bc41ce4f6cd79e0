"""`voxout native`: from the template to a subject's own images."""

import numpy as np
import pytest
from voxout.data_manifests.derivatives import OutputFolder
from voxout.data_manifests.subject import SubjectRecord
from voxout.data_manifests.volume import Grid, Volume, read_grid, read_volume, write_volume
from voxout.pipeline.cli import main
from voxout.preprocessing.coregistration import Alignment
from voxout.preprocessing.resampling import itk_affine
from voxout.preprocessing.template import load_template
from voxout.preprocessing.template_transform import TemplateTransform

SUBJECT = SubjectRecord("01", "patient", {}, session_id="2")
MOVE = np.array([[0.98, -0.17, 0, 12.0], [0.17, 0.98, 0, -9.0], [0, 0, 0.95, 4.0], [0, 0, 0, 1]])
"""Template RAS mm to native RAS mm."""
TO_FLAIR = np.array([[1, 0, 0, 7.0], [0, 1, 0, -3.0], [0, 0, 1, 2.0], [0, 0, 0, 1]])


def place_of(volume):
    """The centre of what is above a half, in RAS mm."""
    index = np.argwhere(volume.voxels > 0.5).mean(axis=0)
    return (volume.affine @ [*index, 1])[:3]


@pytest.fixture
def out(tmp_path):
    """A run that prepared one subject, whose grid is stored LPS."""
    folder = OutputFolder(tmp_path / "out")
    TemplateTransform.from_affine(MOVE).save(folder.transform_folder(SUBJECT))
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = [100, 90, -80]
    grid = Grid((100, 110, 60), affine, 1, 2)
    write_volume(folder.native_brain_mask(SUBJECT), Volume(np.ones(grid.size_vox, bool), grid))
    Alignment(itk_affine(TO_FLAIR), 0.0, 0.3).save(folder.alignment(SUBJECT, "flair"))
    return folder


@pytest.fixture
def region(tmp_path):
    """A ball of the template's space."""
    grid = load_template(3.0).grid
    points = np.moveaxis(np.indices(grid.size_vox), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = np.linalg.norm(points - [-30, 20, 10], axis=-1) < 12
    return write_volume(tmp_path / "region.nii.gz", Volume(inside, grid))


def test_a_region_reaches_its_place_on_the_t1w(out, region, tmp_path, capsys):
    result = tmp_path / "new" / "region.nii.gz"
    assert main(["native", str(out.root), "sub-01_ses-2", str(region), str(result), "--labels"]) == 0
    assert capsys.readouterr().out == f"{result}\n"
    native = read_volume(result)
    stored = read_grid(out.native_brain_mask(SUBJECT))
    assert native.grid.same_as(stored)
    assert (native.grid.qform_code, native.grid.sform_code) == (stored.qform_code, stored.sform_code)
    assert set(np.unique(native.voxels)) == {0, 1}
    assert place_of(native) == pytest.approx((MOVE @ [-30, 20, 10, 1])[:3], abs=0.7)


def test_and_on_the_flair(out, region, tmp_path):
    grid = Grid((90, 100, 30), np.array([[2.0, 0, 0, -90], [0, 2, 0, -100], [0, 0, 5, -70], [0, 0, 0, 1]]))
    like = write_volume(tmp_path / "flair.nii", Volume(np.zeros(grid.size_vox, np.float32), grid))
    result = tmp_path / "region.nii"
    command = ["native", str(out.root), "01_ses-2", str(region), str(result), "--image", "flair", "--like", str(like)]
    assert main(command) == 0
    native = read_volume(result)
    assert native.grid.same_as(read_grid(like))
    assert place_of(native) == pytest.approx((TO_FLAIR @ MOVE @ [-30, 20, 10, 1])[:3], abs=1.2)


def test_the_sentences(out, region, tmp_path, capsys):
    def told(*command):
        assert main(["native", *map(str, command)]) == 2
        return capsys.readouterr().err

    result = tmp_path / "r.nii.gz"
    assert "holds no prepared sub-07, expected a subject such as sub-01. Check the id." in (
        told(out.root, "sub-07", region, result)
    )
    assert "--image flair: no image to be like" in told(out.root, "01_ses-2", region, result, "--image", "flair")
    out.alignment(SUBJECT, "flair").unlink()
    assert "sub-01_ses-2: its FLAIR was not prepared" in (
        told(out.root, "01_ses-2", region, result, "--image", "flair", "--like", region)
    )
    assert "expected a name that ends in .nii or .nii.gz" in told(out.root, "01_ses-2", region, tmp_path / "r.mgz")
    assert "no such file" in told(out.root, "01_ses-2", tmp_path / "none.nii.gz", result)
    assert not result.exists()


def test_a_mask_keeps_its_volume(out, tmp_path):
    # Twelve balls of 0.2 ml, of the label 3. By nearest neighbours some gain or lose more than two voxels.
    grid = load_template(2.0).grid
    points = np.moveaxis(np.indices(grid.size_vox), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    middles = [(x, y, z) for x in (-31, 1) for y in (-51, -14, 21) for z in (3, 32)]
    balls = [np.linalg.norm(points - middle, axis=-1) < 3.7 for middle in middles]
    mask = write_volume(tmp_path / "lesions.nii.gz", Volume((3 * np.any(balls, axis=0)).astype(np.float32), grid))
    result = tmp_path / "lesions-01.nii.gz"
    assert main(["native", str(out.root), "sub-01_ses-2", str(mask), str(result), "--labels"]) == 0
    native = read_volume(result)
    assert set(np.unique(native.voxels)) == {0, 3}
    places = np.moveaxis(np.indices(native.grid.size_vox), 0, -1) @ native.affine[:3, :3].T + native.affine[:3, 3]
    for middle, ball in zip(middles, balls, strict=True):
        near = np.linalg.norm(places - (MOVE @ [*middle, 1])[:3], axis=-1) < 12
        expected_vox = np.linalg.det(MOVE[:3, :3]) * ball.sum() * 8 / 12
        assert abs((native.voxels[near] > 0).sum() - expected_vox) < 1.5
