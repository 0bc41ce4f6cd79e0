import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.features import whitening as module
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.whitening import WhitenedLatents, Whitening, fit_whitening
from voxout.preprocessing.patches.voxel_mask import VoxelMask


def grid_of(mask):
    return VoxelMask(Grid(mask.shape, np.eye(4)), mask)


def holed_grid(shape=(6, 5, 7), seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[2] = False
    mask[0, 0, 0] = True
    return grid_of(mask)


def varied(grid, subjects=9, dimension=3, seed=0, offset=0.0):
    """Codes whose means, scales and correlations change from place to place."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(grid.size, dimension, dimension))
    noise = random.normal(size=(subjects, grid.size, dimension))
    return (np.einsum("pij,spj->spi", mixing, noise) + random.normal(size=(grid.size, dimension)) + offset).astype("f4")


def slow_covariances(latents, grid, shrinkage):
    """Voxel by voxel, neighbour by neighbour, subject by subject; as the docstring says it."""
    _, size, dimension = latents.shape
    latents = latents.astype(np.float64)
    means, freedom = np.nanmean(latents, axis=0), np.isfinite(latents[..., 0]).sum(axis=0) - 1
    where = {tuple(place): number for number, place in enumerate(grid.locations)}
    pooled = np.zeros((size, dimension, dimension))
    for v, place in enumerate(grid.locations):
        near = [where.get(tuple(place + np.array(step) - 1)) for step in np.ndindex(3, 3, 3)]
        near = [u for u in near if u is not None]
        for u in near:
            own = np.nan_to_num(latents[:, u] - means[u])
            apart = means[u] - means[v]
            pooled[v] += (own.T @ own + freedom[u] * np.outer(apart, apart)) / freedom[near].sum()
    brain = pooled.mean(axis=0)
    scale = np.trace(pooled, axis1=1, axis2=2) / np.trace(brain)
    return (1 - shrinkage) * pooled + shrinkage * scale[:, None, None] * brain


@pytest.mark.parametrize("numbers_at_once", [1, 700, 32_000_000])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_against_the_slow_one(monkeypatch, numbers_at_once, shrinkage):
    """Also whatever the thickness of the slabs."""
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", numbers_at_once)
    monkeypatch.setattr(module, "_LOCATIONS_AT_ONCE", 13)
    grid = holed_grid()
    latents = varied(grid)
    whitening = fit_whitening(latents, grid, shrinkage=shrinkage)
    np.testing.assert_allclose(whitening.mean, latents.mean(axis=0), atol=1e-6)
    covariance = slow_covariances(latents, grid, shrinkage)
    factor = whitening.factor().astype(float)
    white = factor @ covariance @ factor.transpose(0, 2, 1)
    # The floor adds 1e-4 of the mean variance to every eigenvalue; float16 leaves three digits.
    np.testing.assert_allclose(white, np.broadcast_to(np.eye(3), white.shape), atol=1e-2)
    assert np.array_equal(factor, np.tril(factor))


def test_whoever_is_missing_somewhere_counts_for_nothing_there():
    """Against the slow way; and whoever is missing everywhere might as well not be there."""
    grid, random = holed_grid(), np.random.default_rng(5)
    latents = varied(grid)
    gone = random.random(latents.shape[:2]) < 0.4
    gone[:2] = False
    latents[gone] = np.nan
    whitening = fit_whitening(latents, grid, shrinkage=0.3)
    np.testing.assert_allclose(whitening.mean, np.nanmean(latents, axis=0), atol=1e-5)
    factor = whitening.factor().astype(float)
    white = factor @ slow_covariances(latents, grid, 0.3) @ factor.transpose(0, 2, 1)
    np.testing.assert_allclose(white, np.broadcast_to(np.eye(3), white.shape), atol=1e-2)
    nobody = np.full_like(latents[:1], np.nan)
    again = fit_whitening(np.concatenate([latents, nobody]), grid, shrinkage=0.3)
    np.testing.assert_array_equal(again.mean, whitening.mean)
    np.testing.assert_array_equal(again.packed, whitening.packed)


def test_a_shift_of_all_codes_costs_no_digits():
    grid = holed_grid()
    near, far = (fit_whitening(varied(grid, offset=o), grid, shrinkage=0.01) for o in (0.0, 100.0))
    np.testing.assert_allclose(near.factor(), far.factor(), rtol=5e-3, atol=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_distances_are_mahalanobis_and_know_no_basis(seed, shrinkage):
    """Turning and scaling all codes leaves the whitened distances alone."""
    grid = holed_grid((4, 4, 4))
    latents = varied(grid, seed=seed)
    turn = 1.7 * np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turned = (latents @ turn).astype("f4")
    one = fit_whitening(latents, grid, shrinkage=shrinkage).whiten(latents)
    other = fit_whitening(turned, grid, shrinkage=shrinkage).whiten(turned)
    np.testing.assert_allclose((one**2).sum(-1), (other**2).sum(-1), rtol=0.02, atol=0.02)


def test_one_lonely_location_by_hand():
    """Two subjects at +-1 about 5: mean 5, variance 2 of the sample."""
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    whitening = fit_whitening(np.array([[[4.0]], [[6.0]]]), grid_of(mask), shrinkage=0.0)
    assert whitening.mean.tolist() == [[5.0]]
    np.testing.assert_allclose(whitening.whiten(np.array([[6.0]])), 1 / np.sqrt(2), rtol=1e-3)


def test_more_dimensions_than_controls():
    grid = holed_grid()
    latents = varied(grid, subjects=2, dimension=8)
    white = fit_whitening(latents, grid, shrinkage=0.01).whiten(latents)
    assert np.isfinite(white).all()


@pytest.mark.parametrize("loudness", [1e-5, 1.0, 3e4])
def test_quiet_and_loud_features_stay_finite_and_whiten_alike(loudness):
    """A channel that hardly varies, at a place where it does not vary at all."""
    grid = holed_grid()
    latents = varied(grid)
    latents[:, :9] = latents[:1, :9]
    whitening = fit_whitening(latents * np.float32(loudness), grid, shrinkage=0.01)
    assert np.isfinite(whitening.packed).all()
    one = fit_whitening(latents, grid, shrinkage=0.01)
    distances = [(w.whiten(latents[0] * s) ** 2).sum(-1) for w, s in ((whitening, np.float32(loudness)), (one, 1))]
    np.testing.assert_allclose(*distances, rtol=0.02, atol=0.02)


def test_apply_and_view_read_blocks(tmp_path):
    grid = holed_grid()
    latents = varied(grid).astype(np.float16).astype(np.float32)
    store = LatentStore.create(tmp_path, grid, 3)
    for key, own in zip("abcdefghi", latents, strict=True):
        store.write(key, own)
    store = LatentStore.open(tmp_path, tuple("abcdefghi"), grid)
    whitening = fit_whitening(store, grid, shrinkage=0.1)
    whole = whitening.whiten(latents)
    assert whole.dtype == np.float32
    view = WhitenedLatents(store, whitening)
    assert view.shape == latents.shape
    np.testing.assert_array_equal(view[:, 5:20], whole[:, 5:20])
    np.testing.assert_array_equal(view[:, 20:999], whole[:, 20:])
    np.testing.assert_array_equal(whitening.whiten(latents[0]), whole[0])
    by_hand = np.einsum("pij,pj->pi", whitening.factor().astype(float), latents[4] - whitening.mean)
    np.testing.assert_allclose(whole[4], by_hand, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_is_the_same(tmp_path):
    grid = holed_grid()
    whitening = fit_whitening(varied(grid), grid, shrinkage=0.1)
    loaded = Whitening.load(whitening.save(tmp_path / "deep" / "whitening.safetensors"))
    np.testing.assert_array_equal(loaded.mean, whitening.mean)
    np.testing.assert_array_equal(loaded.packed, whitening.packed)
    assert loaded.packed.dtype == np.float16
    assert loaded.mask_hash == grid.mask_hash
    with pytest.raises(UserError, match="no such file. Run the stage fit first"):
        Whitening.load(tmp_path / "none")


def test_errors():
    grid = holed_grid()
    latents = varied(grid)
    with pytest.raises(UserError, match="Whitening: 1 control, expected at least 2"):
        fit_whitening(latents[:1], grid, shrinkage=0.1)
    with pytest.raises(UserError, match="the controls' features are all alike"):
        fit_whitening(np.ones_like(latents), grid, shrinkage=0.1)
    with pytest.raises(UserError, match="another mask"):
        fit_whitening(latents[:, 1:], grid, shrinkage=0.1)
    lonely = latents.copy()
    lonely[1:, 4] = np.nan
    with pytest.raises(UserError, match="fewer than 2 controls have features at location 4"):
        fit_whitening(lonely, grid, shrinkage=0.1)
    broken = latents.copy()
    broken[2, 4, 1] = np.nan
    with pytest.raises(UserError, match="codes are not finite"):
        fit_whitening(broken, grid, shrinkage=0.1)
    with pytest.raises(ValueError, match="do not end in"):
        fit_whitening(latents, grid, shrinkage=0.1).whiten(latents[:, 1:])


def test_the_diagonal_alone_divides_by_standard_deviations():
    random = np.random.default_rng(0)
    grid = holed_grid()
    latents = (random.normal(size=(400, grid.size, 2)) @ np.array([[2.0, 1.5], [0, 0.3]])).astype(np.float32)
    white = fit_whitening(latents, grid, shrinkage=0.0, diagonal=True).whiten(latents)
    np.testing.assert_allclose(white.std(axis=(0, 1)), 1, atol=0.1)
    before, after = np.corrcoef(latents[:, 0].T)[0, 1], np.corrcoef(white[:, 0].T)[0, 1]
    assert after == pytest.approx(before, abs=1e-3), "what goes together goes on doing so"
