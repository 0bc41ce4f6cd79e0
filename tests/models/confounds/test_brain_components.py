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
"""Two patterns over both channels."""
EVERYWHERE = np.ones(GRID.size, bool)


def brains(subjects, noise=0.3):
    weights = RANDOM.normal(size=(subjects, 2)) * [2.0, 1.0]
    features = np.tensordot(weights, TRUTH, axes=1) + noise * RANDOM.normal(size=(subjects, GRID.size, 2)) + 5
    return weights, np.stack([sampled(one, EVERYWHERE) for one in features])


def learnt(seen, size=2):
    return BrainComponents.learn(VOXELS, seen, size)


def test_weights_of_unseen_brains_follow_the_truth():
    found = learnt(brains(60)[1])
    weights, unseen = brains(40)
    own = np.stack([found.weights(brain) for brain in unseen])
    # Up to a turn among the two patterns, which a regression on both does not mind.
    left = weights - own @ np.linalg.lstsq(own, weights, rcond=None)[0]
    assert (left.var(axis=0) / weights.var(axis=0) < 0.02).all()


def test_against_scikit_learn():
    _, seen = brains(30)
    found = learnt(seen)
    common = np.clip((seen - found.mean) * found.scale, -4, 4).reshape(30, -1)
    expected = PCA(2).fit_transform(common)
    own = np.stack([found.weights(brain) for brain in seen])
    np.testing.assert_allclose((own**2).mean(axis=0), 1, rtol=0.05)
    agreement = np.abs(np.corrcoef(own.T, expected.T)[:2, 2:]).diagonal()
    np.testing.assert_allclose(agreement, 1, atol=5e-3)  # scikit-learn takes off the mean of what was held, too


@pytest.mark.parametrize(("share", "most"), [(0.01, 0.1), (0.1, 0.4)])
def test_a_lesion_hardly_weighs_in(share, most):
    """Where a pattern is strongest, so that it would; and the tenth of a brain is a large one."""
    found = learnt(brains(60)[1])
    _, (brain,) = brains(1)
    lesion = brain.copy()
    lesion[np.argsort(-TRUTH[0].sum(axis=1))[: int(share * GRID.size)]] = -1e6
    moved = found.weights(lesion) - found.weights(brain)
    assert np.abs(moved).max() < most
    apart = brain_components._held(lesion, found.mean, found.scale) - brain_components._held(
        brain, found.mean, found.scale
    )
    least_squares = np.linalg.lstsq(found.maps.T, apart, rcond=None)[0]
    assert np.abs(least_squares).max() > 2 * np.abs(moved).max()


@pytest.mark.parametrize("missing", [0.05, 0.3, 0.5])
def test_what_is_missing_of_a_brain_is_not_held_against_it(missing):
    found = learnt(brains(60)[1])
    _, unseen = brains(20)
    whole = np.stack([found.weights(brain) for brain in unseen])
    unseen[:, : int(missing * GRID.size)] = np.nan
    part = np.stack([found.weights(brain) for brain in unseen])
    slope = (part * whole).sum(axis=0) / (whole**2).sum(axis=0)
    np.testing.assert_allclose(slope, 1, atol=0.08)
    features = RANDOM.normal(size=(GRID.size, 2))
    inside = RANDOM.random(GRID.size) < 0.7
    assert (np.isnan(sampled(features, inside)).all(axis=1) == ~inside).all()


def test_places_that_nobody_covers_and_a_brain_that_is_alike():
    _, seen = brains(12)
    seen[:, :50] = np.nan
    seen[:, 60, 1] = 7.0  # without spread
    found = learnt(seen)
    own = np.stack([found.weights(brain) for brain in seen])
    np.testing.assert_allclose((own**2).mean(axis=0), 1, rtol=0.1)
    without = learnt(np.delete(seen[:, 50:], 10, axis=1))
    other = np.stack([without.weights(np.delete(brain[50:], 10, axis=0)) for brain in seen])
    np.testing.assert_allclose(np.abs((own * other).mean(axis=0)), 1, rtol=0.1)


def test_many_places_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(brain_components, "_LOCATIONS", 10)
    features = np.arange(GRID.size, dtype=float)[:, None]
    np.testing.assert_array_equal(sampled(features, EVERYWHERE)[:, 0], np.arange(10) * 111)


@pytest.mark.parametrize(
    ("wanted", "controls", "size"), [(10, 60, 10), (10, 40, 8), (10, 11, 2), (10, 4, 0), (0, 60, 0)]
)
def test_few_controls_allow_few_patterns(wanted, controls, size):
    assert affordable(wanted, controls) == size


def test_saved_and_loaded(tmp_path):
    found = learnt(brains(30)[1])
    loaded = BrainComponents.load(found.save(tmp_path / "patterns.safetensors"), VOXELS)
    (brain,) = brains(1)[1]
    np.testing.assert_array_equal(loaded.weights(brain), found.weights(brain))
    with pytest.raises(UserError, match="holds no components of healthy brains"):
        BrainComponents.load(tmp_path / "none.safetensors", VOXELS)
