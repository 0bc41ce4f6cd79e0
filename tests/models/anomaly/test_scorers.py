import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly import scorers
from voxout.models.anomaly.scorers import Mahalanobis, OneClassSvms
from voxout.models.confounds import residual_whitening
from voxout.models.features.whitening import fit_whitening
from voxout.models.settings import DetectorSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = np.zeros((3, 4, 5), bool)
MASK[1:, 1:3, 1:4] = True
GRID = VoxelMask(Grid(MASK.shape, np.diag([2.0, 2, 2, 1])), MASK)
CONTROLS = np.random.default_rng(0).normal(size=(30, GRID.size, 2)).astype(np.float32)
RAW = DetectorSettings(latent_scaling="raw", nu=0.2, gamma=0.05, score="decision")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Store support vectors as they are, for comparisons with references."""
    monkeypatch.setattr(scorers, "_PRECISION", "float32")


def _anomalous_at(voxel: int) -> np.ndarray:
    features = np.median(CONTROLS, axis=0)
    features[voxel] = 4.0
    return features


def _kernels(svms: OneClassSvms, features: np.ndarray):
    """At every voxel, the dual coefficients and the kernel between the support vectors and the features."""
    for v in range(GRID.size):
        support, dual = svms.field.support(v)
        yield dual, np.exp(-0.05 * ((support - features[v]) ** 2).sum(1))


def test_scores_are_higher_for_anomalies():
    """The score is minus scikit-learn's decision function."""
    scores = OneClassSvms.fit(CONTROLS, GRID, RAW).score(_anomalous_at(3))
    assert scores.dtype == np.float32
    assert scores.argmax() == 3
    assert scores[3] > 0 > np.delete(scores, 3).max()
    oracles = [OneClassSVM(nu=0.2, gamma=0.05, tol=1e-8).fit(CONTROLS[:, v]) for v in range(GRID.size)]
    expected = [-svm.decision_function(_anomalous_at(3)[v : v + 1])[0] for v, svm in enumerate(oracles)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_the_log_ratio_is_that_of_offset_and_kernel_sum():
    svms = OneClassSvms.fit(CONTROLS, GRID, RAW.model_copy(update={"score": "log_ratio"}))
    features = _anomalous_at(3)
    expected = [
        np.log(svms.field.offset[v] / (dual @ kernel)) for v, (dual, kernel) in enumerate(_kernels(svms, features))
    ]
    np.testing.assert_allclose(svms.score(features), expected, rtol=1e-4, atol=1e-5)


def test_the_distance_is_that_from_the_support_vectors_in_the_kernels_space():
    """Half the squared length of phi(z) - phi(z_i), averaged with the dual coefficients."""
    svms = OneClassSvms.fit(CONTROLS, GRID, RAW.model_copy(update={"score": "distance"}))
    features = _anomalous_at(3)
    expected = [np.average((1 - 2 * kernel + 1) / 2, weights=dual) for dual, kernel in _kernels(svms, features)]
    np.testing.assert_allclose(svms.score(features), expected, rtol=1e-4)


@pytest.mark.parametrize("score", ["decision", "log_ratio"])
def test_all_scores_give_the_same_ranking_at_a_voxel(score):
    """They differ between voxels, and far from the controls."""
    distance = OneClassSvms.fit(CONTROLS, GRID, RAW.model_copy(update={"score": "distance"}))
    other = OneClassSvms(distance.field, None, score)
    participants = CONTROLS * 1.5
    ranks = [
        np.argsort([svms.score(participant) for participant in participants], axis=0) for svms in (distance, other)
    ]
    np.testing.assert_array_equal(*ranks)


def test_the_log_ratio_keeps_rising_far_from_the_controls():
    plain = OneClassSvms.fit(CONTROLS, GRID, RAW)
    ratio = OneClassSvms(plain.field, None, "log_ratio")
    near, far = _anomalous_at(3), _anomalous_at(3)
    near[3], far[3] = 20.0, 22.0
    assert plain.score(near)[3] == plain.score(far)[3], "the kernel is numerically 0"
    assert ratio.score(far)[3] > ratio.score(near)[3] or ratio.score(far)[3] > 20
    inliers = CONTROLS[0]
    for v in range(GRID.size):
        assert np.sign(plain.score(inliers)[v]) == np.sign(ratio.score(inliers)[v])


def test_features_are_whitened_before_scoring():
    svms = OneClassSvms.fit(CONTROLS, GRID, RAW.model_copy(update={"gamma": 0.5, "latent_scaling": "whitened"}))
    whitening = fit_whitening(CONTROLS, GRID, shrinkage=0.01)
    raw = OneClassSvms.fit(whitening.whiten(CONTROLS), GRID, RAW.model_copy(update={"gamma": 0.5}))
    features = CONTROLS[0] + 1
    np.testing.assert_allclose(svms.score(features), raw.score(whitening.whiten(features)), atol=1e-4)


def test_mahalanobis_is_the_distance_under_the_pooled_covariance(monkeypatch):
    monkeypatch.setattr(residual_whitening, "SHRINKAGE", 0.0)
    scorer = Mahalanobis.fit(CONTROLS, GRID)
    features = CONTROLS[1] * 2
    scores = scorer.score(features)
    for v in range(GRID.size):
        near = (np.abs(GRID.locations - GRID.locations[v]) <= 1).all(1)
        mean = CONTROLS[:, v].mean(0)
        within = [np.cov(CONTROLS[:, u].T) for u in np.flatnonzero(near)]
        between = [np.outer(CONTROLS[:, u].mean(0) - mean, CONTROLS[:, u].mean(0) - mean) for u in np.flatnonzero(near)]
        covariance = np.mean(within, axis=0) + np.mean(between, axis=0)
        expected = mahalanobis(features[v], mean, np.linalg.inv(covariance))
        assert scores[v] == pytest.approx(expected, rel=5e-3)


def test_one_sided_scores_are_signed_z_scores():
    one = CONTROLS[:, :, :1]
    fitted = {d: Mahalanobis.fit(one, GRID, d) for d in ("both", "higher", "lower")}
    features = one.mean(0) + 2.0
    scores = {direction: scorer.score(features) for direction, scorer in fitted.items()}
    assert (scores["higher"] > 0).all()
    np.testing.assert_array_equal(scores["lower"], -scores["higher"])
    np.testing.assert_allclose(scores["both"], np.abs(scores["higher"]), rtol=1e-6)


def test_saved_and_loaded(tmp_path):
    settings = DetectorSettings(nu=0.2)
    svms, distance = OneClassSvms.fit(CONTROLS, GRID, settings), Mahalanobis.fit(CONTROLS, GRID)
    svms.save(tmp_path / "a")
    distance.save(tmp_path / "b")
    features = _anomalous_at(3)
    np.testing.assert_array_equal(
        OneClassSvms.load(tmp_path / "a", GRID, settings).score(features), svms.score(features)
    )
    np.testing.assert_array_equal(Mahalanobis.load(tmp_path / "b", GRID).score(features), distance.score(features))


def test_detectors_of_another_brain_mask_are_refused(tmp_path):
    settings = DetectorSettings(nu=0.2)
    OneClassSvms.fit(CONTROLS, GRID, settings).save(tmp_path)
    other = VoxelMask(Grid(MASK.shape, np.eye(4)), MASK)
    with pytest.raises(
        UserError, match="fitted on another brain mask, expected that of the model. Fit the model again"
    ):
        OneClassSvms.load(tmp_path, other, settings)


def test_detectors_of_many_controls_are_fitted_on_some_of_them(monkeypatch):
    many = np.random.default_rng(1).standard_t(6, size=(900, GRID.size, 2)).astype(np.float32)
    some = OneClassSvms.fit(many, GRID, RAW)
    monkeypatch.setattr(scorers, "MOST_CONTROLS_OF_A_DETECTOR", len(many))
    every = OneClassSvms.fit(many, GRID, RAW)
    for voxel in range(GRID.size):
        support, _ = some.field.support(voxel)
        assert 0.2 * 400 <= len(support) < 0.2 * 900
    others = np.random.default_rng(2).standard_t(6, size=(300, GRID.size, 2)).astype(np.float32)
    scores = [np.stack([svms.score(own) for own in others]) for svms in (some, every)]
    correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(*(each.T for each in scores), strict=True)]
    assert min(correlations) > 0.99
