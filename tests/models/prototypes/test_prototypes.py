"""Prototypes against a slow implementation, and what they are for: tissue that moves, and tissue that is new."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.calibrated_scorer import CalibratedScorer
from voxout.models.anomaly.score_change import score_change
from voxout.models.prototypes import kernels, scorer
from voxout.models.prototypes.blocks import Blocks
from voxout.models.prototypes.scorer import N_PROTOTYPES, Prototypes, Samples
from voxout.models.tensor_file import write_tensors
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (20, 18, 16)
BALL = np.linalg.norm(np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2, axis=-1).T < 9
MASK = VoxelMask(Grid(SHAPE, np.diag([2.0, 2, 2, 1])), BALL)
N = 24


def _brain(random, shift_vox=0.0):
    """Two tissues with a border at x = 10 voxels plus the shift: values of the voxel and of its neighbours along x."""
    x = np.indices(SHAPE)[0] - 10 - shift_vox
    image = 1 / (1 + np.exp(-3 * x)) + 0.03 * ndimage.gaussian_filter(random.normal(size=SHAPE), 0.5)
    return np.stack([MASK.transform(np.roll(image, step, axis=0)) for step in (-1, 0, 1)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def controls():
    """Features of healthy brains, the border of which lies anywhere within 4 mm of its mean."""
    random = np.random.default_rng(0)
    return np.stack([_brain(random, random.uniform(-2, 2)) for _ in range(N)])


def _samples(controls, participants=None, folds=(), jobs=1):
    participants = np.arange(len(controls)) if participants is None else participants
    return Samples.draw(lambda index: controls[index], participants, folds, MASK, seed=0, jobs=jobs)


@pytest.fixture(scope="module")
def samples(controls):
    return _samples(controls)


@pytest.fixture(scope="module")
def fitted(samples):
    return samples.fit(np.arange(N), jobs=1)


def test_blocks_cover_the_mask_once():
    blocks = Blocks(MASK)
    corners = blocks.corners[blocks.number]
    assert ((corners <= MASK.locations) & (MASK.locations < corners + blocks.edges)).all()
    assert len(np.unique(blocks.number)) == len(blocks.corners)
    np.testing.assert_array_equal(blocks.edges, [2, 2, 2])
    # The voxels around a block are those within 7 mm of its centre, whatever the spacing.
    fine = Blocks(VoxelMask(Grid(SHAPE, np.diag([1.0, 1, 2, 1])), BALL))
    np.testing.assert_array_equal(fine.edges, [4, 4, 2])
    edges = {
        spacing: Blocks(VoxelMask(Grid(SHAPE, np.diag([spacing] * 3 + [1])), BALL)).edges[0]
        for spacing in (0.8, 3, 4, 5)
    }
    assert edges == {0.8: 5, 3: 2, 4: 1, 5: 1}
    distance_mm = np.linalg.norm((fine.offsets - (fine.edges - 1) / 2) * [1, 1, 2], axis=1)
    assert distance_mm.max() <= 7
    assert len(fine.offsets) == pytest.approx(4 / 3 * np.pi * 7**3 / 2, rel=0.05)


def test_samples_are_patches_around_their_block(controls, samples):
    blocks = samples.blocks
    assert samples.patches.shape == (N, len(blocks.corners), 25, 3)
    for block in (0, 100, len(blocks.corners) - 1):
        near_mm = np.linalg.norm((MASK.locations - blocks.corners[block] - 0.5) * 2, axis=1)
        allowed = controls[3, near_mm <= 7].astype(np.float16)
        drawn = samples.patches[3, block]
        assert (drawn[:, None] == allowed).all(axis=2).any(axis=1).all()
        assert len(np.unique(drawn, axis=0)) > 10


def test_missing_features_are_not_sampled(controls):
    with_gap = controls.copy()
    with_gap[0, MASK.locations[:, 0] < 10] = np.nan
    drawn = _samples(with_gap).patches[0]
    first = Blocks(MASK).corners[:, 0]
    assert np.isnan(drawn[first < 4]).all()
    assert np.isfinite(drawn[first >= 10]).mean() > 0.95
    assert np.isfinite(_samples(with_gap).fit(np.arange(N), jobs=1).prototypes).all()


def test_prototypes_are_the_means_of_their_clusters(samples, fitted):
    """The prototypes are a fixed point of k-means up to the last rounds: a slow round hardly moves them."""
    block = len(fitted.prototypes) // 2
    patches = samples.patches[:, block].reshape(-1, 3).astype(np.float64)
    own = np.unique(fitted.prototypes[block], axis=0)
    nearest = ((patches[:, None] - own) ** 2).sum(axis=2).argmin(axis=1)
    means = np.stack([patches[nearest == k].mean(axis=0) for k in range(len(own))])
    assert np.abs(means - own).max() < 0.1 * patches.std()
    within = np.cov((patches - own[nearest]).T, bias=True)
    factor = fitted.factors[block].astype(np.float64)
    expected = (1 - scorer._SHRINKAGE) * within + (scorer._SHRINKAGE * np.trace(within) / 3) * np.eye(3)
    np.testing.assert_allclose(np.linalg.inv(factor.T @ factor), expected, rtol=0.25, atol=0.1 * np.trace(within))


def test_a_round_of_k_means_by_hand():
    """Two tight clusters far apart, and two prototypes: their means, and the covariance about them."""
    random = np.random.default_rng(1)
    patches = np.concatenate([random.normal(0, 0.1, (40, 2)), random.normal(5, 0.1, (60, 2))]).astype(np.float32)
    prototypes, factor = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    kernels.fit_block(patches, np.arange(100), 6, 5, 0.05, 0.01, 0, prototypes, factor)
    means = np.stack([patches[:40].mean(axis=0), patches[40:].mean(axis=0)])
    np.testing.assert_allclose(prototypes[np.argsort(prototypes[:, 0])], means, atol=1e-5)
    within = np.concatenate([patches[:40] - means[0], patches[40:] - means[1]])
    covariance = within.T @ within / 100
    expected = 0.95 * covariance + (0.05 * np.trace(covariance) / 2 + 0.01) * np.eye(2)
    np.testing.assert_allclose(np.linalg.inv(factor.T @ factor), expected, rtol=1e-4, atol=1e-7)


def test_scores_equal_those_of_a_slow_implementation(controls, fitted):
    inside = np.ones(MASK.size, bool)
    inside[::7] = False
    scores = fitted.score(controls[0], inside=inside, jobs=2)
    assert (scores[~inside] == 0).all()
    for voxel in np.flatnonzero(inside)[::97]:
        block = fitted.blocks.number[voxel]
        white = (controls[0, voxel] - fitted.prototypes[block]) @ fitted.factors[block].T
        assert scores[voxel] == pytest.approx(np.sqrt((white**2).sum(axis=1).min()), rel=1e-4)


def test_a_change_of_the_prototypes_is_a_change_of_the_scores(fitted):
    def change(**changed):
        one, other = (
            CalibratedScorer("prototypes", None, own, None, None)  # type: ignore[arg-type]
            for own in (fitted, replace(fitted, **changed))
        )
        return score_change(one, other)

    assert change(prototypes=fitted.prototypes.copy()).large == 0
    coarse, fine = (change(factors=share * fitted.factors).typical for share in (1.02, 1.002))
    assert 0.002 < fine < 0.02 and coarse == pytest.approx(10 * fine, rel=0.02)
    assert change(prototypes=fitted.prototypes + 0.01).typical > 0.01


def test_tissue_that_moves_is_normal_and_new_tissue_is_not(controls, fitted):
    random = np.random.default_rng(5)
    everywhere = np.ones(MASK.size, bool)
    usual = fitted.score(controls[0], inside=everywhere)
    moved = fitted.score(_brain(random, 3.0), inside=everywhere)
    x = MASK.locations[:, 0]
    passed_over = (x >= 10) & (x <= 13)
    # For the voxels that the border has passed over, the z-score at the same voxel is extreme.
    z = np.abs(_brain(random, 3.0)[:, 1] - controls[:, :, 1].mean(axis=0)) / controls[:, :, 1].std(axis=0)
    assert z[passed_over].mean() > 2
    assert np.median(moved[passed_over]) < 1.5 * np.median(usual[passed_over])
    lesion = _brain(random, 0.0)
    spot = (np.abs(MASK.locations - [14, 9, 8]) <= 1).all(axis=1)
    lesion[spot] = 0.5
    scores = fitted.score(lesion, inside=everywhere)
    assert scores[spot].min() > 2 * np.quantile(usual, 0.99)


def test_a_prototype_is_never_that_of_a_few_participants(controls):
    """Four participants share a tissue that nobody else has, one of them with five scans."""
    rare = controls.copy()
    rare[:8, :, :] = 40.0
    participants = np.array([0, 0, 0, 0, 0, 1, 2, 3, *range(4, N - 4)])
    assert np.abs(_samples(rare, participants).fit(np.arange(N)).prototypes).max() < 5
    assert np.abs(_samples(rare).fit(np.arange(N)).prototypes).max() == pytest.approx(40)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_very_few_controls(controls, n):
    fitted = _samples(controls[:n]).fit(np.arange(n))
    assert np.isfinite(fitted.score(controls[5], inside=np.ones(MASK.size, bool))).all()


def test_of_many_controls_some_are_sampled(controls):
    many = _samples(np.concatenate([controls] * 30))
    assert many.patches.shape[:3] == (600, len(many.blocks.corners), 1)
    assert np.ptp(many.controls) == 30 * N - 1


def test_results_do_not_depend_on_threads(controls, samples):
    threads = _samples(controls, jobs=3)
    np.testing.assert_array_equal(threads.patches, samples.patches)
    one, many = samples.fit(np.arange(2, N), jobs=1), samples.fit(np.arange(2, N), jobs=3)
    np.testing.assert_array_equal(one.prototypes, many.prototypes)
    np.testing.assert_array_equal(one.factors, many.factors)


def test_a_fit_does_not_depend_on_controls_left_out(controls):
    changed = controls.copy()
    changed[4] = 9.0
    left_out = np.delete(np.arange(N), 4)
    one, other = (_samples(c).fit(left_out) for c in (controls, changed))
    np.testing.assert_array_equal(one.prototypes, other.prototypes)
    np.testing.assert_array_equal(one.factors, other.factors)


@pytest.mark.parametrize("n_controls", [7, 13, 24, 50, 480, 760, 1500])
def test_every_fit_uses_as_many_patches(controls, monkeypatch, n_controls):
    counts = []
    monkeypatch.setattr(kernels, "fit_blocks", lambda samples, *_: counts.append(samples.shape[0] * samples.shape[2]))
    folds = np.array_split(np.random.default_rng(0).permutation(n_controls), 5)
    repeated = np.resize(np.arange(N), n_controls)
    everyone = np.arange(n_controls)
    samples = Samples.draw(lambda index: controls[repeated[index]], everyone, folds, MASK, seed=0, jobs=2)
    for chosen in (*(np.setdiff1d(everyone, fold) for fold in folds), everyone):
        samples.fit(chosen, jobs=1)
    assert 600 <= min(counts) <= max(counts) < 720
    assert max(counts) < 1.2 * min(counts)


def test_saved_and_loaded(controls, fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = Prototypes.load(tmp_path, MASK, 3)
    everywhere = np.ones(MASK.size, bool)
    scores = (one.score(controls[1], inside=everywhere) for one in (loaded, fitted))
    np.testing.assert_array_equal(*scores)
    assert loaded.prototypes.shape[1] == N_PROTOTYPES
    smaller = BALL.copy()
    smaller[:9] = False
    with pytest.raises(UserError, match="its prototypes were fitted on another brain mask"):
        Prototypes.load(tmp_path, VoxelMask(MASK.grid, smaller), 3)
    with pytest.raises(UserError, match="do not match features of size 4"):
        Prototypes.load(tmp_path, MASK, 4)
    path = tmp_path / "prototypes.safetensors"
    # A small file whose matrices would fill the memory.
    wide = {"prototypes": np.zeros((1, 1, 100_000), np.float32), "factors": np.zeros((1, 1), np.float32)}
    write_tensors(tmp_path / "wide" / path.name, wide)
    with pytest.raises(UserError, match="do not match features of size 3"):
        Prototypes.load(tmp_path / "wide", MASK, 3)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="prototypes of healthy patches"):
        Prototypes.load(tmp_path, MASK, 3)
