import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.confounds.regression import ConfoundRegression
from voxout.models.features.moments import SubsetMoments
from voxout.models.features.subsets import Subsets
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = np.zeros((6, 5, 4), bool)
MASK[1:5, 1:4, 1:3] = True
MASK[2, 2, 1] = False
GRID = VoxelMask(Grid(MASK.shape, np.eye(4)), MASK)


def _latents(seed=0, subjects=12):
    return np.random.default_rng(seed).normal(size=(subjects, GRID.size, 3)).astype(np.float32)


def _covariates(subjects=12):
    return np.random.default_rng(7).normal((3.0, 0.0), size=(subjects, 2))


def _fitted(latents, covariates, mask=GRID):
    """Regression of features (S, P, d) on confounds (S, k)."""
    slabs = SubsetMoments(latents, mask, Subsets.everyone(covariates), jobs=1).slabs()
    return ConfoundRegression(np.concatenate([slab.slopes[0] for slab in slabs], axis=1))


def test_slopes_are_ridge_regression_averaged_over_neighbours():
    """Against a regression voxel by voxel, with a ridge penalty of 5."""
    latents, covariates = _latents(), _covariates()
    own = np.empty((GRID.size, 2, 3))
    centred = covariates - covariates.mean(axis=0)
    for voxel in range(GRID.size):
        features = latents[:, voxel] - latents[:, voxel].mean(axis=0)
        rows, wanted = np.vstack([centred, np.sqrt(5) * np.eye(2)]), np.vstack([features, np.zeros((2, 3))])
        own[voxel] = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    expected = [
        own[np.abs(GRID.locations.astype(int) - voxel).max(axis=1) <= 1].mean(axis=0)
        for voxel in GRID.locations.astype(int)
    ]
    slopes = _fitted(latents, covariates).slopes.swapaxes(0, 1)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3, atol=1e-5)  # stored in half precision


def test_slopes_use_the_controls_that_are_available():
    latents, covariates = _latents(), _covariates()
    latents[:5, 3], latents[7, 3:9] = np.nan, np.nan
    isolated = VoxelMask(Grid((GRID.size * 2, 1, 1), np.eye(4)), (np.arange(GRID.size * 2) % 2 == 0)[:, None, None])
    slopes = _fitted(latents, covariates, isolated).slopes  # voxels without neighbours
    for voxel in range(GRID.size):
        available = np.isfinite(latents[:, voxel, 0])
        alone = _fitted(latents[available], covariates[available], isolated).slopes
        np.testing.assert_allclose(slopes[:, voxel], alone[:, voxel], rtol=2e-3, atol=1e-5)
    residuals = ConfoundRegression(slopes).residualise(latents[7], covariates[7])
    assert np.isnan(residuals[3:9]).all() and np.isfinite(residuals[9:]).all()


def test_the_effect_of_a_covariate_is_regressed_out():
    latents, covariates = 0.1 * _latents(subjects=400), _covariates(subjects=400)
    covariates -= covariates.mean(axis=0)
    slopes = np.array([[1.0, 0.0, -2.0], [0.0, 0.5, 0.0]])
    features = latents + np.einsum("sk,kd->sd", covariates, slopes)[:, None].astype(np.float32)
    regression = _fitted(features, covariates)
    np.testing.assert_allclose(regression.residualise(features[5], covariates[5]), latents[5], atol=0.15)


@settings(deadline=None, max_examples=30)
@given(st_np.arrays(float, (12, 2), elements=st.floats(-3, 3)))
def test_features_at_the_mean_of_the_confounds_do_not_change(covariates):
    latents = _latents()
    regression = _fitted(latents, covariates)
    assert np.isfinite(regression.slopes).all()
    np.testing.assert_array_equal(regression.residualise(latents[0], np.zeros(2)), latents[0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_residuals_are_features_minus_slopes_times_confounds(order):
    """Regression test: features whose columns are contiguous, as channels are, came back unchanged."""
    latents, covariates = _latents(), _covariates()
    slopes = np.random.default_rng(1).normal(size=(2, GRID.size, 3)).astype(np.float16)
    features = np.asarray(latents[4], order=order)
    expected = latents[4] - np.einsum("k,kpd->pd", covariates[4], slopes)
    np.testing.assert_allclose(ConfoundRegression(slopes).residualise(features, covariates[4]), expected, atol=1e-5)
    np.testing.assert_array_equal(features, latents[4])


def test_saved_and_loaded_to_the_bit(tmp_path):
    regression = _fitted(_latents(), _covariates())
    path = regression.save(tmp_path / "covariates.safetensors")
    np.testing.assert_array_equal(ConfoundRegression.load(path).slopes, regression.slopes)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="holds no slopes of confounds .*Run the stage fit again"):
        ConfoundRegression.load(path)
