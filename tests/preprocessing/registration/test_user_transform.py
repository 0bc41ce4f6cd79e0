"""Tests of ITK transforms provided by the user."""

import numpy as np
import pytest
import SimpleITK as sitk
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid
from voxout.preprocessing.registration.resampling import LPS, itk_affine, place_itk
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.user_transform import read_transform

TEMPLATE = load_template(4.0)


def written(path, *transforms):
    """Write transforms; a composite applies the last one first."""
    sitk.WriteTransform(sitk.CompositeTransform(list(transforms)) if len(transforms) > 1 else transforms[0], str(path))
    return path


def waves(kit, height_mm):
    """A smooth warp as a displacement field on the template's grid."""
    moves = height_mm * np.sin(kit.millimetres(TEMPLATE.grid)[..., [1, 2, 0]] / 25)
    field = sitk.GetImageFromArray((moves @ LPS).transpose(2, 1, 0, 3), isVector=True)
    place_itk(field, TEMPLATE.grid)
    return moves, sitk.DisplacementFieldTransform(field)


@pytest.mark.parametrize("suffix", ["mat", "tfm", "txt", "h5"])
def test_affine_in_every_format(suffix, tmp_path, kit):
    truth = kit.turned(20.0, (5.0, -30.0, 12.0), scale=0.9)
    found = read_transform(written(tmp_path / f"to_template.{suffix}", itk_affine(truth)), TEMPLATE)
    assert found.warp is None and found.affine == pytest.approx(truth, abs=1e-5)


def test_composite_maps_points_in_both_directions(tmp_path, kit):
    truth = kit.turned(12.0, (5.0, -30.0, 12.0), scale=1.1)
    moves, warp = waves(kit, 6.0)
    found = read_transform(written(tmp_path / "to template ü.h5", itk_affine(truth), warp), TEMPLATE)
    inside = TEMPLATE.brain_mask.voxels
    points = kit.millimetres(TEMPLATE.grid)[inside]
    moved = points + moves[inside]
    expected = moved @ truth[:3, :3].T + truth[:3, 3]
    warped = points + found.warp[inside]
    reached = warped @ found.affine[:3, :3].T + found.affine[:3, 3]
    assert np.abs(reached - expected).max() < 0.02
    assert np.abs(found.points_to_template(expected[::500]) - points[::500]).max() < 0.15
    assert found.jacobian_range.smallest > 0


def test_native_volume_is_resampled(tmp_path, kit):
    truth = kit.turned(12.0, (5.0, -30.0, 12.0))
    ball = TEMPLATE.brain_mask.with_voxels(kit.ball(TEMPLATE.grid, (-30, 20, 10), 14))
    found = read_transform(written(tmp_path / "t.tfm", itk_affine(truth)), TEMPLATE)
    native = found.to_native(ball, Grid(ball.grid.size_vox, truth @ ball.affine), interpolation="nearest")
    assert kit.dice(native.voxels, ball.voxels) > 0.99
    back = found.to_template(native, ball.grid, interpolation="nearest")
    assert kit.millimetres(back.grid)[back.voxels].mean(0) == pytest.approx([-30, 20, 10], abs=1)


def test_errors_for_invalid_transforms(tmp_path):
    with pytest.raises(UserError, match=r"no such file, expected an ITK transform \(.*\) in column template_transform"):
        read_transform(tmp_path / "none.h5", TEMPLATE)
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.h5\W: is not a readable transform, expected an ITK transform"):
        read_transform(tmp_path / "bad.h5", TEMPLATE)
    flat = written(tmp_path / "flat.tfm", sitk.AffineTransform(2))
    with pytest.raises(UserError, match="is a 2-D transform, expected 3-D"):
        read_transform(flat, TEMPLATE)
