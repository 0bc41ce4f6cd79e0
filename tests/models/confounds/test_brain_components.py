import numpy as np
import pytest
from sklearn.decomposition import PCA
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.confounds import brain_components
from voxout.models.confounds.brain_components import BrainComponents, affordable, sampled
from voxout.models.features.extractors import VoxelFeatures
from voxout.preprocessing.patches.voxel_mask import VoxelMask

GRID = VoxelMask(Grid((10, 10, 10), np.eye(4)), np.ones((10, 10, 10), bool))
VOXELS = VoxelFeatures(GRID, (0, 1))
RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.normal(size=(2, GRID.size, 2))
"""Two components over both channels."""
EVERYWHERE = np.ones(GRID.size, bool)


def brains(subjects, noise=0.3):
    weights = RANDOM.normal(size=(subjects, 2)) * [2.0, 1.0]
    features = np.tensordot(weights, TRUTH, axes=1) + noise * RANDOM.normal(size=(subjects, GRID.size, 2)) + 5
    return weights, np.stack([sampled(one, EVERYWHERE) for one in features])


def learnt(samples, size=2):
    return BrainComponents.learn(VOXELS, samples, size)


def test_weights_of_unseen_brains_follow_the_truth():
    found = learnt(brains(60)[1])
    weights, unseen = brains(40)
    own = np.stack([found.weights(brain) for brain in unseen])
    # Up to a rotation of the two components, which does not matter to a regression on both.
    residuals = weights - own @ np.linalg.lstsq(own, weights, rcond=None)[0]
    assert (residuals.var(axis=0) / weights.var(axis=0) < 0.02).all()


def test_against_scikit_learn():
    _, samples = brains(30)
    found = learnt(samples)
    clipped = np.clip((samples - found.mean) * found.scale, -4, 4).reshape(30, -1)
    expected = PCA(2).fit_transform(clipped)
    own = np.stack([found.weights(brain) for brain in samples])
    np.testing.assert_allclose((own**2).mean(axis=0), 1, rtol=0.05)
    agreement = np.abs(np.corrcoef(own.T, expected.T)[:2, 2:]).diagonal()
    np.testing.assert_allclose(agreement, 1, atol=5e-3)  # scikit-learn also subtracts the mean of the clipped values


@pytest.mark.parametrize(("share", "most"), [(0.01, 0.1), (0.1, 0.4)])
def test_a_lesion_hardly_changes_the_weights(share, most):
    """The lesion lies where a component is strongest, and fills up to a tenth of the brain."""
    found = learnt(brains(60)[1])
    _, (brain,) = brains(1)
    lesion = brain.copy()
    lesion[np.argsort(-TRUTH[0].sum(axis=1))[: int(share * GRID.size)]] = -1e6
    moved = found.weights(lesion) - found.weights(brain)
    assert np.abs(moved).max() < most
    standardised, before = (brain_components._standardised(x, found.mean, found.scale) for x in (lesion, brain))
    least_squares = np.linalg.lstsq(found.maps.T, standardised - before, rcond=None)[0]
    assert np.abs(least_squares).max() > 2 * np.abs(moved).max()


@pytest.mark.parametrize("missing", [0.05, 0.3, 0.5])
def test_missing_voxels_hardly_change_the_weights(missing):
    found = learnt(brains(60)[1])
    _, unseen = brains(20)
    complete = np.stack([found.weights(brain) for brain in unseen])
    unseen[:, : int(missing * GRID.size)] = np.nan
    part = np.stack([found.weights(brain) for brain in unseen])
    slope = (part * complete).sum(axis=0) / (complete**2).sum(axis=0)
    np.testing.assert_allclose(slope, 1, atol=0.08)
    features = RANDOM.normal(size=(GRID.size, 2))
    inside = RANDOM.random(GRID.size) < 0.7
    assert (np.isnan(sampled(features, inside)).all(axis=1) == ~inside).all()


def test_voxels_without_brain_or_variance():
    _, samples = brains(12)
    samples[:, :50] = np.nan
    samples[:, 60, 1] = 7.0  # no variance
    found = learnt(samples)
    own = np.stack([found.weights(brain) for brain in samples])
    np.testing.assert_allclose((own**2).mean(axis=0), 1, rtol=0.1)
    without = learnt(np.delete(samples[:, 50:], 10, axis=1))
    other = np.stack([without.weights(np.delete(brain[50:], 10, axis=0)) for brain in samples])
    np.testing.assert_allclose(np.abs((own * other).mean(axis=0)), 1, rtol=0.1)


def test_voxels_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(brain_components, "_SAMPLED_VOXELS", 10)
    features = np.arange(GRID.size, dtype=float)[:, None]
    np.testing.assert_array_equal(sampled(features, EVERYWHERE)[:, 0], np.arange(10) * 111)


@pytest.mark.parametrize(
    ("wanted", "controls", "size"), [(10, 60, 10), (10, 40, 8), (10, 11, 2), (10, 4, 0), (0, 60, 0)]
)
def test_few_controls_allow_few_components(wanted, controls, size):
    assert affordable(wanted, controls) == size


def test_saved_and_loaded(tmp_path):
    found = learnt(brains(30)[1])
    loaded = BrainComponents.load(found.save(tmp_path / "components.safetensors"), VOXELS)
    (brain,) = brains(1)[1]
    np.testing.assert_array_equal(loaded.weights(brain), found.weights(brain))
    with pytest.raises(UserError, match="holds no components of healthy brains"):
        BrainComponents.load(tmp_path / "none.safetensors", VOXELS)
