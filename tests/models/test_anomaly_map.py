import numpy as np
import pytest
from sklearn.svm import OneClassSVM
from voxout.data_manifests.grid import Grid
from voxout.models.anomaly_map import score_subject
from voxout.models.detector import fit_detectors
from voxout.models.whitening import WhitenedLatents, fit_whitening
from voxout.preprocessing.patch_grid import PatchGrid

MASK = np.zeros((3, 4, 5), bool)
MASK[1:, 1:3, 1:4] = True
GRID = PatchGrid(Grid(MASK.shape, np.diag([2.0, 2, 2, 1])), MASK)
RANDOM = np.random.default_rng(0)
CONTROLS = RANDOM.normal(size=(30, GRID.size, 2)).astype(np.float32)


def test_the_sign_turns_over():
    """Higher = more anomalous, and minus scikit-learn's decision function."""
    detectors = fit_detectors(CONTROLS, nu=0.2, gamma=0.05, precision="float32")
    codes = np.median(CONTROLS, axis=0)
    codes[3] = 4.0
    found = score_subject(detectors, codes, GRID)
    assert found.voxels.dtype == np.float32
    assert found.grid.same_as(GRID.grid)
    assert (found.voxels[~MASK] == 0).all()
    scores = GRID.gather(found.voxels)
    assert scores.argmax() == 3
    assert scores[3] > 0 > np.delete(scores, 3).max()
    oracles = [OneClassSVM(nu=0.2, gamma=0.05, tol=1e-8).fit(CONTROLS[:, v]) for v in range(GRID.size)]
    expected = [-svm.decision_function(codes[v : v + 1])[0] for v, svm in enumerate(oracles)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_codes_are_whitened_as_the_detectors_were():
    whitening = fit_whitening(CONTROLS, GRID, shrinkage=0.1)
    detectors = fit_detectors(WhitenedLatents(CONTROLS, whitening), nu=0.2, gamma=0.5)
    codes = CONTROLS[0] + 1
    white = score_subject(detectors, codes, GRID, whitening)
    np.testing.assert_array_equal(white.voxels, score_subject(detectors, whitening.apply(codes), GRID).voxels)


def test_what_does_not_belong_together():
    whitening = fit_whitening(CONTROLS, GRID, shrinkage=0.1)
    detectors = fit_detectors(CONTROLS, nu=0.2, gamma=0.5)
    with pytest.raises(ValueError, match="expected 12"):
        score_subject(detectors, CONTROLS[0, 1:], GRID)
    turned = PatchGrid(Grid(MASK.shape, np.eye(4)), MASK)
    with pytest.raises(ValueError, match="whitening of mask"):
        score_subject(detectors, CONTROLS[0], turned, whitening)
