import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.features import slabs
from voxout.models.features import whitening as module
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.whitening import Whitening, fit_whitening
from voxout.preprocessing.patches.voxel_mask import VoxelMask

from .slow_whitening import slow_covariances


def mask_of(mask):
    return VoxelMask(Grid(mask.shape, np.eye(4)), mask)


def mask_with_holes(shape=(6, 5, 7), seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[2] = False
    mask[0, 0, 0] = True
    return mask_of(mask)


def varied(voxel_mask, subjects=9, dimension=3, seed=0, offset=0.0):
    """Features whose means, scales and correlations differ between voxels."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(voxel_mask.size, dimension, dimension))
    noise = random.normal(size=(subjects, voxel_mask.size, dimension))
    return (
        np.einsum("pij,spj->spi", mixing, noise) + random.normal(size=(voxel_mask.size, dimension)) + offset
    ).astype("f4")


@pytest.mark.parametrize("numbers_at_once", [1, 700, 16_000_000])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_against_the_direct_implementation(monkeypatch, numbers_at_once, shrinkage):
    """For slabs of different thickness."""
    monkeypatch.setattr(slabs, "_SLAB_NUMBERS", numbers_at_once)
    voxel_mask = mask_with_holes()
    latents = varied(voxel_mask)
    whitening = fit_whitening(latents, voxel_mask, shrinkage=shrinkage)
    np.testing.assert_allclose(whitening.mean, latents.mean(axis=0), atol=1e-6)
    covariance = slow_covariances(latents, voxel_mask, shrinkage)
    factor = whitening.factor().astype(float)
    white = factor @ covariance @ factor.transpose(0, 2, 1)
    # The floor adds 1e-4 of the mean variance to every eigenvalue; float16 leaves three digits.
    np.testing.assert_allclose(white, np.broadcast_to(np.eye(3), white.shape), atol=1e-2)
    assert np.array_equal(factor, np.tril(factor))


def test_missing_controls_are_ignored():
    """Missing at some voxels, and missing at all voxels."""
    voxel_mask, random = mask_with_holes(), np.random.default_rng(5)
    latents = varied(voxel_mask)
    missing = random.random(latents.shape[:2]) < 0.4
    missing[:2] = False
    latents[missing] = np.nan
    whitening = fit_whitening(latents, voxel_mask, shrinkage=0.3)
    np.testing.assert_allclose(whitening.mean, np.nanmean(latents, axis=0), atol=1e-5)
    factor = whitening.factor().astype(float)
    white = factor @ slow_covariances(latents, voxel_mask, 0.3) @ factor.transpose(0, 2, 1)
    np.testing.assert_allclose(white, np.broadcast_to(np.eye(3), white.shape), atol=1e-2)
    empty = np.full_like(latents[:1], np.nan)
    again = fit_whitening(np.concatenate([latents, empty]), voxel_mask, shrinkage=0.3)
    np.testing.assert_array_equal(again.mean, whitening.mean)
    np.testing.assert_array_equal(again.packed, whitening.packed)


def test_a_shift_of_all_features_loses_no_precision():
    voxel_mask = mask_with_holes()
    near, far = (fit_whitening(varied(voxel_mask, offset=o), voxel_mask, shrinkage=0.01) for o in (0.0, 100.0))
    np.testing.assert_allclose(near.factor(), far.factor(), rtol=5e-3, atol=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_distances_do_not_depend_on_the_basis(seed, shrinkage):
    """Rotating and scaling all features does not change the whitened distances."""
    voxel_mask = mask_with_holes((4, 4, 4))
    latents = varied(voxel_mask, seed=seed)
    rotation = 1.7 * np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    rotated = (latents @ rotation).astype("f4")
    one = fit_whitening(latents, voxel_mask, shrinkage=shrinkage).whiten(latents)
    other = fit_whitening(rotated, voxel_mask, shrinkage=shrinkage).whiten(rotated)
    np.testing.assert_allclose((one**2).sum(-1), (other**2).sum(-1), rtol=0.02, atol=0.02)


def test_a_single_voxel_by_hand():
    """Two subjects at 5 +- 1: mean 5, sample variance 2."""
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    whitening = fit_whitening(np.array([[[4.0]], [[6.0]]]), mask_of(mask), shrinkage=0.0)
    assert whitening.mean.tolist() == [[5.0]]
    np.testing.assert_allclose(whitening.whiten(np.array([[6.0]])), 1 / np.sqrt(2), rtol=1e-3)


def test_more_dimensions_than_controls():
    voxel_mask = mask_with_holes()
    latents = varied(voxel_mask, subjects=2, dimension=8)
    white = fit_whitening(latents, voxel_mask, shrinkage=0.01).whiten(latents)
    assert np.isfinite(white).all()


@pytest.mark.parametrize("factor", [1e-5, 1.0, 3e4])
def test_whitening_does_not_depend_on_the_scale_of_the_features(factor):
    """Some voxels have no variance at all."""
    voxel_mask = mask_with_holes()
    latents = varied(voxel_mask)
    latents[:, :9] = latents[:1, :9]
    whitening = fit_whitening(latents * np.float32(factor), voxel_mask, shrinkage=0.01)
    assert np.isfinite(whitening.packed).all()
    one = fit_whitening(latents, voxel_mask, shrinkage=0.01)
    distances = [(w.whiten(latents[0] * s) ** 2).sum(-1) for w, s in ((whitening, np.float32(factor)), (one, 1))]
    np.testing.assert_allclose(*distances, rtol=0.02, atol=0.02)


def test_a_store_is_whitened_like_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_VOXELS_AT_ONCE", 13)
    voxel_mask = mask_with_holes()
    latents = varied(voxel_mask).astype(np.float16).astype(np.float32)
    store = LatentStore.create(tmp_path, voxel_mask, 3)
    for key, own in zip("abcdefghi", latents, strict=True):
        store.write(key, own)
    store = LatentStore.open(tmp_path, tuple("abcdefghi"), voxel_mask)
    whitening = fit_whitening(store, voxel_mask, shrinkage=0.1)
    again = fit_whitening(latents, voxel_mask, shrinkage=0.1)
    np.testing.assert_array_equal(whitening.packed, again.packed)
    white = whitening.whiten(latents)
    assert white.dtype == np.float32
    np.testing.assert_allclose(whitening.whiten(latents[0]), white[0], atol=1e-5)
    np.testing.assert_array_equal(whitening.part(slice(5, 20)).whiten(latents[:, 5:20]), white[:, 5:20])
    by_hand = np.einsum("pij,pj->pi", whitening.factor().astype(float), latents[4] - whitening.mean)
    np.testing.assert_allclose(white[4], by_hand, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_is_the_same(tmp_path):
    voxel_mask = mask_with_holes()
    whitening = fit_whitening(varied(voxel_mask), voxel_mask, shrinkage=0.1)
    loaded = Whitening.load(whitening.save(tmp_path / "deep" / "whitening.safetensors"))
    np.testing.assert_array_equal(loaded.mean, whitening.mean)
    np.testing.assert_array_equal(loaded.packed, whitening.packed)
    assert loaded.packed.dtype == np.float16
    assert loaded.mask_hash == voxel_mask.mask_hash
    with pytest.raises(UserError, match="no such file. Run the stage fit first"):
        Whitening.load(tmp_path / "none")


def test_errors():
    voxel_mask = mask_with_holes()
    latents = varied(voxel_mask)
    with pytest.raises(UserError, match="Whitening: 1 control, expected at least 2"):
        fit_whitening(latents[:1], voxel_mask, shrinkage=0.1)
    with pytest.raises(UserError, match="the controls' features are identical"):
        fit_whitening(np.ones_like(latents), voxel_mask, shrinkage=0.1)
    with pytest.raises(UserError, match="another mask"):
        fit_whitening(latents[:, 1:], voxel_mask, shrinkage=0.1)
    too_few = latents.copy()
    too_few[1:, 4] = np.nan
    with pytest.raises(UserError, match="fewer than 2 controls have features at voxel 4"):
        fit_whitening(too_few, voxel_mask, shrinkage=0.1)
    not_finite = latents.copy()
    not_finite[2, 4, 1] = np.nan
    with pytest.raises(UserError, match="features are not finite"):
        fit_whitening(not_finite, voxel_mask, shrinkage=0.1)
    with pytest.raises(ValueError, match="do not end in"):
        fit_whitening(latents, voxel_mask, shrinkage=0.1).whiten(latents[:, 1:])


def test_diagonal_whitening_divides_by_standard_deviations():
    random = np.random.default_rng(0)
    voxel_mask = mask_with_holes()
    latents = (random.normal(size=(400, voxel_mask.size, 2)) @ np.array([[2.0, 1.5], [0, 0.3]])).astype(np.float32)
    white = fit_whitening(latents, voxel_mask, shrinkage=0.0, diagonal=True).whiten(latents)
    np.testing.assert_allclose(white.std(axis=(0, 1)), 1, atol=0.1)
    before, after = np.corrcoef(latents[:, 0].T)[0, 1], np.corrcoef(white[:, 0].T)[0, 1]
    assert after == pytest.approx(before, abs=1e-3), "correlations do not change"
