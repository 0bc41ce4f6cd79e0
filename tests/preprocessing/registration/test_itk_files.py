"""Transforms as ITK files: ANTs resamples and moves points with them as this package does."""

import ants
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.registration.resampling import LPS, itk_geometry, resample
from voxout.preprocessing.registration.template_transform import JacobianRange, TemplateTransform, in_steps

AFFINE = np.array([[0.98, -0.17, 0, 12.0], [0.17, 0.98, 0, -9.0], [0, 0, 0.95, 4.0], [0, 0, 0, 1]])
TEMPLATE = Grid((40, 50, 45), np.array([[4.0, 0, 0, -80], [0, 4, 0, -110], [0, 0, 4, -70], [0, 0, 0, 1]]))
NATIVE = Grid((44, 40, 38), np.array([[0, -4.0, 0, 80], [3.5, 0, 0, -85], [0, 0, 4, -60], [0, 0, 0, 1]]))


def made(warped):
    if not warped:
        return TemplateTransform.from_affine(AFFINE)
    x, y, z = np.moveaxis(np.indices(TEMPLATE.size_vox), 0, -1).T
    warp = in_steps(4 * np.stack([np.sin(y / 8), np.cos(z / 6), np.sin(x / 9)]).T)
    return TemplateTransform(AFFINE, warp, -warp, TEMPLATE, JacobianRange(1, 1, 1))


def to_ants(volume):
    origin, spacing, direction = itk_geometry(volume.grid)
    return ants.from_numpy(volume.voxels, origin=origin.tolist(), spacing=spacing.tolist(), direction=direction)


def scan(grid, seed=0):
    x, y, z = np.indices(grid.size_vox)
    noise = np.random.default_rng(seed).normal(size=grid.size_vox)
    return Volume((np.sin(x / 5) + np.cos(y / 6) + z / 20 + 0.1 * noise).astype(np.float32), grid)


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("of_flair", [False, True])
def test_ants_gives_what_this_package_gives(tmp_path, warped, of_flair):
    transform, from_t1w = made(warped), None
    if of_flair:
        from_t1w = sitk.Euler3DTransform()
        from_t1w.SetRotation(0.05, 0.02, -0.04)
        from_t1w.SetTranslation((3, 2, -1))
    files = tmp_path / "to_template.h5", tmp_path / "to_native.h5"
    transform.write_itk(*files, from_t1w=from_t1w)
    native, template = scan(NATIVE), scan(TEMPLATE, 1)
    ours = (
        transform.to_template(native, TEMPLATE, interpolation="linear", from_t1w=from_t1w),
        transform.to_native(template, NATIVE, interpolation="linear", from_t1w=from_t1w),
    )
    for file, fixed, moving, own in zip(files, (template, native), (native, template), ours, strict=True):
        theirs = ants.apply_transforms(to_ants(fixed), to_ants(moving), [str(file)], interpolator="linear").numpy()
        inside = (own.voxels != 0) & (theirs != 0)
        assert inside.mean() > 0.3 and ((own.voxels != 0) == (theirs != 0)).mean() > 0.999
        np.testing.assert_allclose(theirs[inside], own.voxels[inside], atol=1e-3)
        everywhere = resample(moving, fixed.grid, sitk.ReadTransform(str(file)), "linear")
        np.testing.assert_array_equal(everywhere.voxels, own.voxels)
    if not of_flair:
        points = np.array([[10.0, -20, 15], [-30, 25, 5], [0, 0, 0]])
        table = pd.DataFrame(points @ LPS, columns=list("xyz"))
        moved = ants.apply_transforms_to_points(3, table, [str(files[1])]).to_numpy() @ LPS
        np.testing.assert_allclose(moved, transform.points_to_template(points), atol=1e-3)
