"""`voxout native`: from template space to a subject's native space."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.volume import Grid, Volume, read_grid, read_volume, write_labels, write_volume
from voxout.pipeline.cli.main import main
from voxout.preprocessing.registration.coregistration import Alignment
from voxout.preprocessing.registration.resampling import itk_affine, ras_affine
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform

SUBJECT = SubjectRecord("01", "patient", {}, session_id="2")
MOVE = np.array([[0.98, -0.17, 0, 12.0], [0.17, 0.98, 0, -9.0], [0, 0, 0.95, 4.0], [0, 0, 0, 1]])
"""Template RAS mm to native RAS mm."""
TO_FLAIR = np.array([[1, 0, 0, 7.0], [0, 1, 0, -3.0], [0, 0, 1, 2.0], [0, 0, 0, 1]])


def place_of(volume):
    """Return the centre of the voxels above 0.5, in RAS mm."""
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
    """A ball in template space."""
    grid = load_template(3.0).grid
    points = np.moveaxis(np.indices(grid.size_vox), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = np.linalg.norm(points - [-30, 20, 10], axis=-1) < 12
    return write_volume(tmp_path / "region.nii.gz", Volume(inside, grid))


def test_a_region_is_at_its_place_on_the_t1w(out, region, tmp_path, capsys):
    result = tmp_path / "new" / "region.nii.gz"
    assert main(["native", str(out.root), "sub-01_ses-2", str(region), str(result), "--labels"]) == 0
    assert capsys.readouterr().out == f"{result}\n"
    native = read_volume(result)
    stored = read_grid(out.native_brain_mask(SUBJECT))
    assert native.grid.same_as(stored)
    assert (native.grid.qform_code, native.grid.sform_code) == (stored.qform_code, stored.sform_code)
    assert set(np.unique(native.voxels)) == {0, 1}
    assert place_of(native) == pytest.approx((MOVE @ [-30, 20, 10, 1])[:3], abs=0.7)


def test_a_region_is_at_its_place_on_the_flair(out, region, tmp_path):
    grid = Grid((90, 100, 30), np.array([[2.0, 0, 0, -90], [0, 2, 0, -100], [0, 0, 5, -70], [0, 0, 0, 1]]))
    like = write_volume(tmp_path / "flair.nii", Volume(np.zeros(grid.size_vox, np.float32), grid))
    result = tmp_path / "region.nii"
    command = ["native", str(out.root), "01_ses-2", str(region), str(result), "--image", "flair", "--like", str(like)]
    assert main(command) == 0
    native = read_volume(result)
    assert native.grid.same_as(read_grid(like))
    assert place_of(native) == pytest.approx((TO_FLAIR @ MOVE @ [-30, 20, 10, 1])[:3], abs=1.2)


def test_error_messages(out, region, tmp_path, capsys):
    def messages(*command):
        assert main(["native", *map(str, command)]) == 2
        return capsys.readouterr().err

    result = tmp_path / "r.nii.gz"
    assert "holds no prepared sub-07, expected a subject such as sub-01_ses-2. Check the id." in (
        messages(out.root, "sub-07", region, result)
    )
    assert "--image flair: no grid is given" in messages(out.root, "01_ses-2", region, result, "--image", "flair")
    out.alignment(SUBJECT, "flair").unlink()
    assert "sub-01_ses-2: its FLAIR was not prepared" in (
        messages(out.root, "01_ses-2", region, result, "--image", "flair", "--like", region)
    )
    assert "expected a name that ends in .nii or .nii.gz" in messages(out.root, "01_ses-2", region, tmp_path / "r.mgz")
    assert "no such file" in messages(out.root, "01_ses-2", tmp_path / "none.nii.gz", result)
    assert not result.exists()


@pytest.mark.parametrize(("image", "name", "move"), [("t1w", "T1w", np.eye(4)), ("flair", "FLAIR", TO_FLAIR)])
def test_transforms_for_other_tools(out, tmp_path, capsys, image, name, move):
    folder = tmp_path / "new"
    command = ["native", str(out.root), "sub-01_ses-2", "--transforms", str(folder), "--image", image]
    assert main(command) == 0
    there, back = (folder / f"sub-01_ses-2_from-{ends}_mode-image_xfm.h5" for ends in (
        f"{name}_to-MNI152NLin2009aSym", f"MNI152NLin2009aSym_to-{name}"
    ))  # fmt: skip
    assert capsys.readouterr().out == f"{there}\n{back}\n"
    np.testing.assert_allclose(ras_affine(sitk.ReadTransform(str(there))), move @ MOVE, atol=1e-9)
    np.testing.assert_allclose(ras_affine(sitk.ReadTransform(str(back))), np.linalg.inv(move @ MOVE), atol=1e-9)
    before = there.read_bytes()
    assert main(command) == 2 and "exists, expected a new file" in capsys.readouterr().err
    assert there.read_bytes() == before
    assert main([*command[:4], str(out.root / "prepared" / "x")]) == 2
    assert "lies in a folder of the run's own files" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["a.nii"], ["a.nii", "b.nii", "--transforms", "folder"]])
def test_a_volume_needs_a_result_and_transforms_need_none(out, capsys, more):
    assert main(["native", str(out.root), "sub-01_ses-2", *more]) == 2
    assert "expected VOLUME and RESULT, or --transforms FOLDER" in capsys.readouterr().err


def test_a_mask_keeps_its_volume(out, tmp_path):
    # Twelve balls of 0.2 ml with label 3. With nearest neighbours, some gain or lose more than two voxels.
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


# -- labels ----------------------------------------------------------------------------------------------------------
SIZE, AFFINE = (7, 6, 5), np.diag([-3.0, 3.0, 4.0, 1.0])
HOME = SubjectRecord("home", "patient", {})
LARGEST = {"f4": 2**24, "f8": 2**53}


def atlas(path, voxels, affine=AFFINE):
    nib.save(nib.Nifti1Image(voxels, affine, dtype=voxels.dtype), path)
    return path


def stored(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run whose subject is in template space, on the grid of the atlases."""
    folder = OutputFolder(tmp_path_factory.mktemp("home"))
    TemplateTransform.from_affine(np.eye(4)).save(folder.transform_folder(HOME))
    write_volume(folder.native_brain_mask(HOME), Volume(np.ones(SIZE, bool), Grid(SIZE, AFFINE)))
    return folder


@st.composite
def labellings(draw):
    """Labels of any data type, also negative ones, and the largest integers that the type represents."""
    kind = np.dtype(draw(st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])))
    largest = LARGEST.get(kind.str[1:]) or int(np.iinfo(kind).max)
    smallest = -largest if kind.kind == "f" else int(np.iinfo(kind).min)
    names = draw(st.lists(st.integers(smallest, largest).filter(bool), min_size=2, max_size=6, unique=True))
    names += [largest, largest - 1, 0]
    picked = np.random.default_rng(draw(st.integers(0, 9))).integers(0, len(names), SIZE)
    return np.array(names, kind)[picked]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(voxels=labellings())
def test_labels_that_are_not_moved_are_the_same_bytes(home, tmp_path, voxels):
    result = tmp_path / "result.nii"
    command = ["native", str(home.root), "home", str(atlas(tmp_path / "atlas.nii", voxels)), str(result), "--labels"]
    assert main(command) == 0
    found = stored(result)
    assert found.dtype == voxels.dtype
    assert found.tobytes() == voxels.tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(voxels=labellings(), angle=st.floats(-3, 3), shift=st.floats(-4, 4))
def test_resampling_creates_no_new_labels(home, tmp_path, voxels, angle, shift):
    move = np.eye(4)
    move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    move[:3, 3] = shift
    TemplateTransform.from_affine(move).save(home.transform_folder(SUBJECT))
    write_volume(home.native_brain_mask(SUBJECT), Volume(np.ones(SIZE, bool), Grid(SIZE, AFFINE)))
    result = tmp_path / "result.nii"
    result.unlink(missing_ok=True)
    path = atlas(tmp_path / "atlas.nii", voxels)
    if main(["native", str(home.root), "01_ses-2", str(path), str(result), "--labels"]) == 0:
        found = stored(result)
        assert found.dtype == voxels.dtype
        assert set(np.unique(found)) <= set(np.unique(voxels)) | {0}
    else:
        assert not result.exists()


def test_big_endian_and_mgz_labels(home, tmp_path):
    voxels = np.arange(np.prod(SIZE), dtype=np.int32).reshape(SIZE) + 614454277
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i4")
    nib.save(nib.Nifti1Image(voxels, AFFINE, header), tmp_path / "big.nii")
    nib.save(nib.MGHImage(voxels, AFFINE), tmp_path / "atlas.mgz")
    for name in "big.nii", "atlas.mgz":
        result = tmp_path / f"{name}-result.nii"
        assert main(["native", str(home.root), "home", str(tmp_path / name), str(result), "--labels"]) == 0
        assert stored(result).dtype == np.int32
        assert np.array_equal(stored(result), voxels)


def test_a_map_is_refused_as_labels(home, tmp_path, capsys):
    path = atlas(tmp_path / "map.nii", np.full(SIZE, 0.25, np.float32))
    assert main(["native", str(home.root), "home", str(path), str(tmp_path / "result.nii"), "--labels"]) == 2
    assert "map.nii: contains the value 0.25, expected whole numbers as labels." in capsys.readouterr().err
    assert main(["native", str(home.root), "home", str(path), str(tmp_path / "result.nii")]) == 0


@pytest.mark.parametrize("labels", [[], ["--labels"]])
def test_a_volume_outside_the_field_of_view_is_refused(home, tmp_path, capsys, labels):
    far = AFFINE.copy()
    far[:3, 3] = 500
    corner = np.zeros(SIZE, np.uint8)
    corner[0, 0, 0] = 1
    apart = AFFINE.copy()
    apart[0, 3] = 3.0 * (SIZE[0] - 1)  # the grids overlap, the nonzero voxel lies outside
    paths = [atlas(tmp_path / "far.nii", np.ones(SIZE, np.uint8), far), atlas(tmp_path / "apart.nii", corner, apart)]
    result = tmp_path / "result.nii"
    for path in paths:
        assert main(["native", str(home.root), "home", str(path), str(result), *labels]) == 2
        assert f"{path.name}: no nonzero voxel lies in the field of view of sub-home's T1w" in capsys.readouterr().err
    empty = atlas(tmp_path / "empty.nii", np.zeros(SIZE, np.uint8))
    assert main(["native", str(home.root), "home", str(empty), str(result), *labels]) == 2
    assert "empty.nii: is 0 everywhere" in capsys.readouterr().err
    assert not result.exists()


# -- path of the result ----------------------------------------------------------------------------------------------
@pytest.fixture
def refused(out, region, capsys):
    """Return the message for a refused result; no file may change."""

    def messages(result, *options):
        around = out.root.parent
        before = {path: path.read_bytes() for path in around.rglob("*") if path.is_file()}
        command = ["native", str(out.root), "01_ses-2", str(region), str(result), *map(str, options)]
        assert main(command) == 2
        assert before == {path: path.read_bytes() for path in around.rglob("*") if path.is_file()}
        return capsys.readouterr().err

    return messages


def test_the_result_may_not_be_an_input(out, region, tmp_path, refused):
    (tmp_path / "hard.nii.gz").hardlink_to(region)
    (tmp_path / "soft.nii.gz").symlink_to(region)
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in "region.nii.gz", "hard.nii.gz", "soft.nii.gz", "folder/region.nii.gz", "out/../region.nii.gz":
        assert "is VOLUME itself" in refused(tmp_path / name)
    like = write_labels(tmp_path / "like.nii", Volume(np.ones(SIZE, np.int16), Grid(SIZE, AFFINE)))
    assert "is the image named by --like" in refused(like, "--like", like)


def test_a_file_of_another_program_is_not_replaced(tmp_path, refused):
    scan = atlas(tmp_path / "sub-01_T1w.nii", np.ones(SIZE, np.int16))
    (tmp_path / "cohort.nii").write_text("subject_id,group,t1w\n")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "empty.nii").touch()
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nothing.nii")
    for name in scan.name, "cohort.nii", "folder.nii", "empty.nii", "gone.nii":
        assert f"{name}: exists and is not an earlier result of `voxout native`" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["prepared/sub-01/new.nii", "maps/new.nii", "Maps/new.nii", "records/a/b/new.nii"])
def test_a_result_inside_the_folders_of_a_run_is_refused(out, tmp_path, refused, name):
    (tmp_path / "another-name").symlink_to(out.root)
    for root in out.root, tmp_path / "another-name", tmp_path / "out" / ".." / "out":
        assert "lies in a folder of the run's own files" in refused(root / name)


def test_a_result_inside_a_linked_folder_of_a_run_is_refused(out, tmp_path, refused):
    (tmp_path / "big-disk").mkdir()
    (out.root / "maps").symlink_to(tmp_path / "big-disk")
    assert "lies in a folder of the run's own files" in refused(tmp_path / "big-disk" / "sub-01" / "new.nii")


def test_a_result_path_is_checked_before_files_are_read(out, tmp_path, capsys):
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"no image")
    assert main(["native", str(out.root), "01_ses-2", str(broken), str(broken)]) == 2
    assert "is VOLUME itself" in capsys.readouterr().err


def test_a_folder_that_accepts_no_files(out, region, capsys):
    """Regression: a result in /proc ended in a traceback."""
    assert main(["native", str(out.root), "01_ses-2", str(region), "/proc/native.nii"]) == 2
    assert "native.nii: cannot be written there. Choose another folder." in capsys.readouterr().err


def test_an_earlier_result_is_replaced(out, region, tmp_path):
    result = out.root / "atlases" / "region.nii.gz"
    command = ["native", str(out.root), "01_ses-2", str(region), str(result)]
    assert main(command) == 0
    first = result.read_bytes()
    assert main([*command, "--labels"]) == 0
    assert result.read_bytes() != first
    assert os.listdir(result.parent) == [result.name]
    assert main(command) == 0
    assert gzip.decompress(result.read_bytes()) == gzip.decompress(first)


def test_an_earlier_result_cannot_be_its_own_input(home, tmp_path, capsys):
    path = atlas(tmp_path / "atlas.nii", np.ones(SIZE, np.int16))
    result = tmp_path / "result.nii"
    assert main(["native", str(home.root), "home", str(path), str(result)]) == 0
    assert main(["native", str(home.root), "home", str(result), str(result)]) == 2
    assert "is VOLUME itself" in capsys.readouterr().err
