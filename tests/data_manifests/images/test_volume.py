"""Reading, checking and writing of images: error messages for damaged files, and all geometries of scans."""

import gzip
import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.images.grid import SAME_WITHIN_MM, Grid, max_corner_distance_mm
from voxout.data_manifests.images.volume import (
    Volume,
    nifti_bytes,
    read_grid,
    read_labels,
    read_mask,
    read_volume,
    write_labels,
    write_volume,
)

SIZE = (5, 6, 7)
VOXELS = np.arange(np.prod(SIZE), dtype=np.int16).reshape(SIZE)  # asymmetric: every flip changes it
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def rotated(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rotation = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    rotation[a, a], rotation[a, b], rotation[b, a], rotation[b, b] = c, -s, s, c
    return rotation


def scan(voxels=VOXELS, affine=AFFINE, *, qform=1, sform=1, image_class=nib.Nifti1Image):
    image = image_class(voxels, affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    return image


def saved(folder: Path, image, name: str = "scan.nii.gz") -> Path:
    nib.save(image, folder / name)
    return folder / name


def with_header(folder: Path, *, name: str = "scan.nii", **fields) -> Path:
    """Write a scan, then overwrite header fields on disk, because nibabel would repair them."""
    path = saved(folder, scan(), name)
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


# -- error messages -------------------------------------------------------------------------------------------------
def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.nii\.gz\W: no such file, expected an image file"):
        read_volume(tmp_path / "nowhere.nii.gz")


def test_folder(tmp_path):
    with pytest.raises(UserError, match="is a folder, expected an image file"):
        read_volume(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_not_permitted(tmp_path):
    path = saved(tmp_path, scan())
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot be opened .* Check the permissions of the file"):
        read_volume(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz"])
def test_empty(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"is empty \(0 bytes\), expected a scan\. Copy it again"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("content", [b"hello", b"subject_id,group\n" * 100, b"\x00" * 1000])
def test_not_nifti(tmp_path, content):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not in a supported image format, expected NIfTI \(\.nii, \.nii\.gz\) or MGZ"):
        read_volume(path)


def test_dicom(tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(b"\x00" * 128 + b"DICM" + b"\x00" * 900)
    with pytest.raises(UserError, match=r"is a DICOM file, expected NIfTI .* dcm2niix"):
        read_volume(path)


def test_analyze_pair_is_an_error_because_its_orientation_is_unknown(tmp_path):
    nib.save(nib.AnalyzeImage(VOXELS, AFFINE), tmp_path / "scan.img")
    with pytest.raises(UserError, match="expected NIfTI"):
        read_volume(tmp_path / "scan.hdr")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_truncated(tmp_path, name, share):
    # ITK silently reads such a file as a scan whose missing part is 0.
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    image = nib.MGHImage(noise, AFFINE) if name.endswith("mgz") else scan(noise)
    path = saved(tmp_path, image, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"is truncated or damaged, expected a complete file"):
        read_volume(path)


def test_truncated_inside_the_header(tmp_path):
    path = saved(tmp_path, scan(), "scan.nii")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="expected NIfTI"):
        read_volume(path)


def test_gzip_checksum_is_verified(tmp_path):
    # One changed bit may still decompress to plausible voxels: only the checksum detects it.
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(scan(noise).to_bytes(), compresslevel=0))
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is truncated or damaged"):
        read_volume(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, bad):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = bad
    with pytest.raises(UserError, match=r"1 of 210 voxels are NaN or infinite, expected finite intensities"):
        read_volume(saved(tmp_path, scan(voxels)))


def test_too_large_for_float32_counts_as_infinite(tmp_path):
    voxels = VOXELS.astype(np.float64)
    voxels[0, 0, 0] = 1e300
    with pytest.raises(UserError, match="NaN or infinite"):
        read_volume(saved(tmp_path, scan(voxels)))


@pytest.mark.parametrize("value", [0, 7])
def test_constant(tmp_path, value):
    with pytest.raises(UserError, match=f"every voxel is {value}, expected a scan"):
        read_volume(saved(tmp_path, scan(np.full(SIZE, value, np.int16))))


@pytest.mark.parametrize(
    ("shape", "found"),
    [((5, 6), "5x6"), ((5, 6, 1), "5x6x1"), ((5, 6, 7, 3), "5x6x7x3"), ((5, 6, 7, 1, 3), "5x6x7x1x3")],
)
def test_not_one_3d_volume(tmp_path, shape, found):
    path = saved(tmp_path, scan(np.arange(np.prod(shape), dtype=np.int16).reshape(shape)))
    with pytest.raises(UserError, match=f"has the shape {found}, expected one 3-D volume. Use a single volume"):
        read_grid(path)


@pytest.mark.parametrize("trailing", [(1,), (1, 1)])
def test_4d_with_one_volume_is_read_as_3d(tmp_path, trailing):
    path = saved(tmp_path, scan(VOXELS.reshape(SIZE + trailing)))
    assert read_grid(path).size_vox == SIZE
    np.testing.assert_array_equal(read_volume(path).voxels, VOXELS)


def test_colour(tmp_path):
    colour = np.zeros(SIZE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UserError, match="is a colour image, expected one intensity per voxel"):
        read_volume(saved(tmp_path, nib.Nifti1Image(colour, AFFINE)))


def test_complex(tmp_path):
    with pytest.raises(UserError, match="is an image of complex numbers"):
        read_volume(saved(tmp_path, scan(VOXELS.astype(np.complex64))))


def test_sheared(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.4
    with pytest.raises(UserError, match="affine is singular or sheared, expected three perpendicular axes"):
        read_volume(saved(tmp_path, scan(affine=sheared, qform=0)))


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [np.nan, 0, 0, 0], [0, 1.5, 0, 0]])
def test_singular(tmp_path, row):
    path = with_header(tmp_path, srow_x=row)
    with pytest.raises(UserError, match="affine is singular or sheared"):
        read_volume(path)


@pytest.mark.parametrize("mm", [0.001, 1000])
def test_spacing_in_the_wrong_unit(tmp_path, mm):
    path = saved(tmp_path, scan(affine=np.diag([mm, mm, mm, 1])))
    with pytest.raises(UserError, match=rf"voxels of {mm} x {mm} x {mm} mm, expected 0\.1 to 20 mm"):
        read_volume(path)


@pytest.mark.parametrize("mm", [0, np.nan])
def test_spacing_zero_is_an_error(tmp_path, mm):
    # nibabel replaces a voxel size of 0 by 1 mm, which may give wrong volumes in ml.
    path = with_header(tmp_path, pixdim=[1, 1, mm, 1, 1, 1, 1, 1], sform_code=0)
    with pytest.raises(UserError, match=rf"voxels of 1 x {mm:g} x 1 mm, expected 0\.1 to 20 mm"):
        read_volume(path)


@pytest.mark.parametrize("codes", [{"sform_code": 9}, {"qform_code": -1}, {"qform_code": 300, "sform_code": 300}])
def test_invalid_form_codes(tmp_path, codes):
    # nibabel sets them to 0, which removes the orientation.
    with pytest.raises(UserError, match="expected codes from 0 to 5: left and right are unknown"):
        read_volume(with_header(tmp_path, **codes))


def test_a_qform_of_nan_is_no_rotation(tmp_path):
    with pytest.raises(UserError, match="qform is not a rotation, expected a rotation"):
        read_volume(with_header(tmp_path, qoffset_x=np.nan, qform_code=1, sform_code=1))


def test_forms_with_opposite_left_and_right(tmp_path):
    image = scan()
    image.set_sform(AFFINE @ np.diag([-1.0, 1, 1, 1]), code=1)
    with pytest.raises(UserError, match=r"qform \(.*RAS\) and sform \(.*LAS\) contradict each other"):
        read_volume(saved(tmp_path, image))


def test_forms_with_different_spacing(tmp_path):
    image = scan()
    image.set_sform(np.diag([1.3, 1.5, 2.0, 1.0]), code=1)
    image.header["pixdim"][1] = 1
    with pytest.raises(UserError, match="contradict each other"):
        read_volume(saved(tmp_path, image))


def test_qform_without_rotation(tmp_path):
    with pytest.raises(UserError, match="qform is not a rotation, expected a rotation"):
        read_volume(with_header(tmp_path, quatern_b=2.0))


def test_scan_aligned_by_its_sform_keeps_its_qform(tmp_path):
    """Aligning a scan to its commissures changes only the sform: the sform is used, the map keeps both."""
    aligned = rotated(2, axis=0) @ AFFINE
    aligned[2, 3] += 11
    image = scan()
    image.set_sform(aligned, code=2)
    read = read_volume(saved(tmp_path, image))
    np.testing.assert_allclose(read.affine, aligned, atol=1e-5)
    header = nib.load(write_volume(tmp_path / "map.nii.gz", read)).header
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), aligned, atol=1e-5)
    assert (header["qform_code"], header["sform_code"]) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vox_offset": 0}, r"start at byte 0 \(vox_offset\), expected 352"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scales the values by 2 and adds nan"),
        ({"scl_slope": np.inf, "scl_inter": 0}, "scales the values by inf"),
        ({"datatype": 1}, "stored with 1 bit per voxel"),
        ({"pixdim": [1, 1, 1, 1, 1, 1, 1, 1], "qform_code": 0}, "by its sform and 1 x 1 x 1 mm by its pixdim"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "expected at most 500,000,000 voxels"),
    ],
)
def test_inconsistent_header(tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        read_volume(with_header(tmp_path, **fields))


@pytest.mark.parametrize("pair", [(np.nan, np.nan), (0, 0), (0, np.nan)])
def test_header_without_scaling_is_valid(tmp_path, pair):
    path = with_header(tmp_path, scl_slope=pair[0], scl_inter=pair[1])
    np.testing.assert_array_equal(read_volume(path).voxels, VOXELS)


def test_other_unit_in_the_header(tmp_path):
    assert read_grid(with_header(tmp_path, xyzt_units=1)).unit == "metre"
    assert read_grid(with_header(tmp_path, xyzt_units=2)).unit is None


@pytest.mark.parametrize(
    ("content", "fetch"),
    [
        ("/annex/objects/MD5E-s9--0.nii.gz\n", "datalad get"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_pointer_to_content_that_was_not_fetched(tmp_path, content, fetch):
    (tmp_path / "t1.nii.gz").write_text(content)
    with pytest.raises(UserError, match=f"content that is not on this machine.*{fetch}"):
        read_volume(tmp_path / "t1.nii.gz")


def test_link_to_content_that_was_not_fetched(tmp_path):
    (tmp_path / "t1.nii.gz").symlink_to(".git/annex/objects/aa/t1.nii.gz")
    with pytest.raises(UserError, match="is a link to content that is not on this machine.*datalad get"):
        read_volume(tmp_path / "t1.nii.gz")


# -- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("label", [1, 255])
def test_mask(tmp_path, label):
    inside = VOXELS > 100
    mask = read_mask(saved(tmp_path, scan(inside.astype(np.uint8) * np.uint8(label))))
    assert mask.voxels.dtype == bool
    np.testing.assert_array_equal(mask.voxels, inside)


def test_mask_with_several_labels(tmp_path):
    with pytest.raises(UserError, match=r"found the values 0, 1, 2, expected a mask of 0 and 1\. Threshold it first"):
        read_mask(saved(tmp_path, scan((VOXELS % 3).astype(np.uint8))))


def test_mask_of_probabilities(tmp_path):
    with pytest.raises(UserError, match=r"found the values 0, 0\.1, 0\.2, 0\.3, 0\.4, \.\.\., expected a mask"):
        read_mask(saved(tmp_path, scan((VOXELS % 10 / 10).astype(np.float32))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_mask_not_finite(tmp_path, bad):
    voxels = np.zeros(SIZE, np.float32)
    voxels[0, 0, 0] = bad
    with pytest.raises(UserError, match="expected a mask of 0 and 1"):
        read_mask(saved(tmp_path, scan(voxels)))


def test_empty_mask_is_rerotated(tmp_path):
    assert not read_mask(saved(tmp_path, scan(np.zeros(SIZE, np.uint8)))).voxels.any()


# -- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_labels_keep_type_and_values(tmp_path, dtype):
    kind = np.dtype(dtype)
    largest = 2**53 - 1 if dtype == "f8" else 2**24 if dtype == "f4" else np.iinfo(kind).max
    voxels = np.zeros(SIZE, kind)
    voxels[1:3, 1, 1] = largest, largest - 1
    path = tmp_path / "atlas.nii"
    nib.save(nib.Nifti1Image(voxels, AFFINE, dtype=kind), path)
    labels = read_labels(path)
    again = nib.load(write_labels(tmp_path / "again.nii", labels, description="voxout native"))
    for found in labels.voxels, np.asanyarray(again.dataobj):
        assert found.dtype == kind
        assert np.array_equal(found, voxels)


@pytest.mark.parametrize("value, found", [(0.5, "0.5"), (-3.25, "-3.25"), (np.nan, "NaN"), (np.inf, "infinite")])
def test_labels_are_whole_numbers(tmp_path, value, found):
    voxels = VOXELS.astype(np.float32).round()
    voxels[2, 1, 1] = value
    with pytest.raises(UserError, match=f"atlas.nii.*: contains .*{found}.*, expected whole numbers"):
        read_labels(saved(tmp_path, scan(voxels), "atlas.nii"))


def test_scale_slope_is_applied(tmp_path):
    path = with_header(tmp_path, scl_slope=0.5, scl_inter=-3)
    read = read_volume(path).voxels
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VOXELS * 0.5 - 3)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nifti_2(tmp_path, name):
    read = read_volume(saved(tmp_path, scan(image_class=nib.Nifti2Image, qform=2), name))
    np.testing.assert_array_equal(read.voxels, VOXELS)
    assert (read.grid.qform_code, read.grid.sform_code) == (2, 1)


@pytest.mark.parametrize("name", ["scan.mgz", "scan.mgh"])
def test_mgz(tmp_path, name):
    affine = rotated(20, axis=1) @ AFFINE
    read = read_volume(saved(tmp_path, nib.MGHImage(VOXELS.astype(np.float32), affine), name))
    np.testing.assert_array_equal(read.voxels, VOXELS)
    np.testing.assert_allclose(read.affine, affine, atol=1e-4)


def test_big_endian(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE, nib.Nifti1Header(endianness=">"))
    np.testing.assert_array_equal(read_volume(saved(tmp_path, image)).voxels, VOXELS)


@pytest.mark.parametrize("zipped", [True, False])
def test_suffix_that_does_not_match_the_compression(tmp_path, zipped):
    content = scan().to_bytes()
    path = tmp_path / ("scan.nii" if zipped else "scan.nii.gz")
    path.write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(read_volume(path).voxels, VOXELS)


# -- geometry --------------------------------------------------------------------------------------------------------
ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


def stored_as(axes, flips, oblique: bool) -> np.ndarray:
    affine = np.zeros((4, 4))
    for column, (axis, flip, mm) in enumerate(zip(axes, flips, (1.0, 1.5, 2.0), strict=True)):
        affine[axis, column] = flip * mm
    affine[:, 3] = 30.5, -12.25, 7, 1
    return (rotated(17, axis=0) @ rotated(-8, axis=2) if oblique else np.eye(4)) @ affine


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (2, 4)], ids=str)
def test_every_stored_orientation_round_trips(tmp_path, codes, oblique):
    assert len(ORIENTATIONS) == 48
    for number, (axes, flips) in enumerate(ORIENTATIONS):
        affine = stored_as(axes, flips, oblique)
        stored = scan(affine=affine, qform=codes[0], sform=codes[1])
        read = read_volume(saved(tmp_path, stored, f"{number}.nii"))
        assert read.grid.qform is None
        expected = "".join("LPI"[a] if f < 0 else "RAS"[a] for a, f in zip(axes, flips, strict=True))
        assert read.grid.orientation == expected
        again = nib.load(write_volume(tmp_path / f"map-{number}.nii", read))
        np.testing.assert_array_equal(again.get_fdata(), VOXELS)
        np.testing.assert_allclose(again.affine, affine, atol=1e-4)
        assert again.shape == SIZE
        assert (int(again.header["qform_code"]), int(again.header["sform_code"])) == codes
        for form, code in zip((again.header.get_qform(), again.header.get_sform()), codes, strict=True):
            if code:
                np.testing.assert_allclose(form, affine, atol=1e-4)


def test_scan_without_form_codes_round_trips(tmp_path):
    read = read_volume(saved(tmp_path, scan(qform=0, sform=0)))
    assert (read.grid.qform_code, read.grid.sform_code) == (0, 0)
    again = nib.load(write_volume(tmp_path / "map.nii", read))
    np.testing.assert_allclose(again.affine, read.affine, atol=1e-5)
    assert (again.header["qform_code"], again.header["sform_code"]) == (0, 0)


def test_affine_that_needs_an_sform_gets_one(tmp_path):
    grid = Grid(SIZE, rotated(30, axis=2) @ AFFINE, qform_code=0, sform_code=0)
    again = read_volume(write_volume(tmp_path / "map.nii.gz", Volume(VOXELS, grid)))
    np.testing.assert_allclose(again.affine, grid.affine, atol=1e-5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    mm=st.tuples(*[st.floats(0.2, 8)] * 3),
    flip=st.sampled_from([1, -1]),
    shift=st.tuples(*[st.floats(-200, 200)] * 3),
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (3, 4)]),
)
@example(angles=(0.0, 0.0625, 0.0), mm=(1.0, 1.0, 2.0), flip=-1, shift=(0.0, 0.0, 0.0), codes=(1, 0))
def test_any_rigid_geometry_round_trips(tmp_path, angles, mm, flip, shift, codes):
    affine = np.eye(4)
    for axis, degrees in enumerate(angles):
        affine = affine @ rotated(degrees, axis)
    affine = affine @ np.diag([flip * mm[0], mm[1], mm[2], 1])
    affine[:3, 3] = shift
    grid = Grid(SIZE, affine, *codes)
    again = read_grid(write_volume(tmp_path / "map.nii", Volume(VOXELS, grid)))
    assert again.same_as(grid)
    # In 32 bits, some quaternions near half a turn are too coarse; then the geometry is in an sform as well.
    header = nib.Nifti1Header()
    header.set_qform(affine, 1)
    is_exact = max_corner_distance_mm(header.get_qform(), affine, SIZE) <= SAME_WITHIN_MM
    assert (again.qform_code, again.sform_code) == (codes if is_exact or codes[1] else (codes[0], 1))
    np.testing.assert_allclose(again.spacing_mm, mm, rtol=1e-4)
    assert again.voxel_volume_mm3 == pytest.approx(np.prod(mm), rel=1e-4)


def test_voxels_must_fit_their_grid():
    with pytest.raises(ValueError, match="do not fit the grid"):
        Volume(VOXELS[1:], Grid(SIZE, AFFINE))


# -- writing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bool", "uint8"), ("uint8", "uint8"), ("int16", "int16"), ("int64", "int32"), ("float16", "float32"),
     ("float32", "float32"), ("float64", "float32")],
)  # fmt: skip
def test_stored_data_types(tmp_path, dtype, stored):
    voxels = (VOXELS % 2).astype(dtype)
    path = write_volume(tmp_path / "deep" / "er" / "map.nii.gz", Volume(voxels, Grid(SIZE, AFFINE)))
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype(stored)
    np.testing.assert_array_equal(image.get_fdata(), voxels)


def test_float32_is_stored_exactly(tmp_path):
    voxels = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    path = write_volume(tmp_path / "map.nii.gz", Volume(voxels, Grid(SIZE, AFFINE)))
    np.testing.assert_array_equal(read_volume(path).voxels, voxels)


@pytest.mark.parametrize("slope", [1.0, 0.25])
def test_nifti_bytes_with_slope(tmp_path, slope):
    voxels = np.arange(np.prod(SIZE), dtype=np.uint16).reshape(SIZE)
    content = nifti_bytes(Volume(voxels, Grid(SIZE, AFFINE)), slope=slope)
    path = tmp_path / "map.nii"
    path.write_bytes(content)
    read = read_volume(path)
    np.testing.assert_array_equal(read.voxels, voxels * np.float32(slope))
    assert nib.load(path).get_data_dtype() == np.uint16
    assert read.grid.same_as(Grid(SIZE, AFFINE))


def test_writing_twice_gives_the_same_bytes(tmp_path):
    volume = Volume(VOXELS, Grid(SIZE, AFFINE))
    one, two = (write_volume(tmp_path / f"{name}.nii.gz", volume) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_failed_write_keeps_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "map.nii.gz", Volume(VOXELS, Grid(SIZE, AFFINE)))
    before = path.read_bytes()

    def failing_save(image, to):
        Path(to).write_bytes(b"partial file")
        raise OSError("no space left on device")

    monkeypatch.setattr("voxout.data_manifests.images.volume.save", failing_save)
    with pytest.raises(OSError, match="no space"):
        write_volume(path, Volume(VOXELS + 1, Grid(SIZE, AFFINE)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_free_text_of_the_input_is_not_copied(tmp_path):
    secret = b"DOE^JANE 1980-01"
    image = scan()
    image.header["descrip"] = image.header["intent_name"] = secret
    image.header["aux_file"] = image.header["db_name"] = secret
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret))
    path = saved(tmp_path, image, "scan.nii")
    assert path.read_bytes().count(secret) == 4 + (secret in path.read_bytes()[348:])
    written = write_volume(tmp_path / "map.nii", read_volume(path)).read_bytes()
    assert b"DOE" not in written and b"JANE" not in written


def test_messages_contain_no_free_text(tmp_path):
    path = with_header(tmp_path, descrip=b"DOE^JANE", sform_code=9)
    with pytest.raises(UserError) as caught:
        read_volume(path)
    assert "DOE" not in str(caught.value)


# -- random damage --------------------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8), mgz=st.booleans())
def test_damaged_file_is_read_or_reported(tmp_path, changes, mgz):
    image = nib.MGHImage(VOXELS.astype(np.float32), AFFINE) if mgz else scan()
    content = bytearray(image.to_bytes())
    for place, byte in changes:
        content[place] = byte
    path = tmp_path / ("scan.mgh" if mgz else "scan.nii")
    path.write_bytes(content)
    for read in (read_grid, read_volume, read_mask):
        try:
            read(path)
        except UserError as error:
            assert for_terminal(error.problems[0]).startswith(path.name)


@pytest.mark.parametrize("folder", ["ixi", "ms", "wmh", "wmh_unaligned", "tumour"])
def test_real_scans_are_readable(shared_data, folder):
    scans = sorted((shared_data / folder).glob("sub-*/anat/*.nii.gz"))
    masks = sorted((shared_data / folder).glob("derivatives/**/*_mask.nii.gz"))
    assert scans and masks
    for path in scans:
        assert read_volume(path).voxels.any()
    for path in masks:
        assert read_mask(path).voxels.any()


def test_real_headers_are_readable(shared_data):
    for path in sorted((shared_data / "mdd1mm").glob("sub-*/anat/*.nii.gz")):
        assert read_grid(path).orientation == "LAS"


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float16", "float32", "float64", ">i2"])
def test_metatensor_round_trip(dtype):
    affine = rotated(20, 2) @ np.diag([-1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = 1 / 3, -20, 7
    volume = Volume(VOXELS.astype(dtype).transpose(2, 0, 1)[::-1], Grid((7, 5, 6), affine, qform_code=2, sform_code=4))
    tensor = volume.to_metatensor()
    assert tensor.shape == (1, 7, 5, 6) and np.array_equal(tensor.affine, affine)
    back = Volume.from_metatensor(tensor)
    assert back.voxels.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_array_equal(back.affine, affine)
    assert (back.grid.qform_code, back.grid.sform_code) == (2, 4)
    tensor[:] = 0
    assert volume.voxels.any() and back.voxels.any(), "copies"


def test_metatensor_is_that_of_monai(tmp_path):
    """MONAI's reader gives the same tensor, and Volume the same grid as the reader of this package."""
    from monai.transforms import LoadImage

    path = saved(tmp_path, scan(affine=rotated(20, 0) @ AFFINE, qform=2, sform=3))
    loaded, ours = LoadImage(reader="NibabelReader", ensure_channel_first=True)(path), read_volume(path)
    np.testing.assert_array_equal(loaded, ours.to_metatensor())
    np.testing.assert_array_equal(loaded.affine, ours.to_metatensor().affine)
    found = Volume.from_metatensor(loaded)
    np.testing.assert_array_equal(found.voxels, ours.voxels)
    assert vars(found.grid).keys() == vars(ours.grid).keys()
    assert all(np.array_equal(value, getattr(ours.grid, name)) for name, value in vars(found.grid).items())


def test_metatensor_in_lps_is_converted():
    tensor = Volume(VOXELS, Grid(SIZE, AFFINE)).to_metatensor()
    tensor.affine = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    tensor.meta["space"] = "LPS"
    np.testing.assert_array_equal(Volume.from_metatensor(tensor).affine, AFFINE)


def test_metatensors_that_cannot_be_volumes_are_refused():
    import torch
    from monai.transforms import Orientation

    tensor = Volume(VOXELS, Grid(SIZE, AFFINE)).to_metatensor()
    bad = tensor.clone()
    bad.affine = torch.full((4, 4), torch.nan)
    refused = {
        "found a tensor without an affine": tensor.as_tensor(),
        "transforms that are still pending": Orientation("LAS", lazy=True)(tensor),
        "has complex values": tensor.to(torch.complex64),
        "its affine is not finite": bad,
    }
    for words, image in refused.items():
        with pytest.raises(UserError, match=words):
            Volume.from_metatensor(image)
    half = Volume.from_metatensor(tensor.to(torch.bfloat16))
    assert half.voxels.dtype == np.float32
    tensor.meta["qform_code"] = torch.tensor([2, 2])
    assert Volume.from_metatensor(tensor).grid.qform_code == 2


def test_metatensor_needs_one_channel():
    tensor = Volume(VOXELS, Grid(SIZE, AFFINE)).to_metatensor()
    with pytest.raises(UserError, match=r"has the shape \(2, 5, 6, 7\), expected one channel"):
        Volume.from_metatensor(tensor.expand(2, -1, -1, -1))
    with pytest.raises(UserError, match=r"has the shape \(5, 6, 7\)"):
        Volume.from_metatensor(tensor[0])
