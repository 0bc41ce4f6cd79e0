"""The fit by torch, on a GPU where there is one, gives the scores of the compiled code."""

import numpy as np
import pytest
import torch
from voxout.data_manifests.errors import MachineError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly import one_pass as module
from voxout.models.anomaly.one_pass import OnePass
from voxout.models.anomaly.scorers import DistanceParts, SvmParts
from voxout.models.features.subsets import Subsets
from voxout.models.settings import DetectorSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = VoxelMask(Grid((5, 6, 7), np.diag([2.0, 2.0, 2.0, 1.0])), np.ones((5, 6, 7), bool))
CONTROLS, SIZE = 15, 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOLDS = [np.arange(first, CONTROLS, 3) for first in range(3)]


def made(confounds: int, weighted: bool) -> tuple[np.ndarray, Subsets]:
    random = np.random.default_rng(5)
    features = random.normal(size=(CONTROLS, MASK.size, SIZE)).astype(np.float32)
    features[2, ::7] = np.nan  # a control that is missing at some voxels
    values = [random.normal(size=(CONTROLS, confounds)).astype(np.float32) for _ in range(len(FOLDS) + 1)]
    return features, Subsets(FOLDS, values, random.uniform(0.5, 1.5, CONTROLS) if weighted else None)


def fitted(parts, features, subsets, device):
    scores = np.full((CONTROLS, MASK.size), np.nan, np.float32)
    one_pass = OnePass(MASK, subsets, jobs=1, device=device)
    scorer, _ = one_pass.fit(lambda controls: features[controls], parts, scores)
    return scores, scorer


@pytest.mark.parametrize("scaling", ["whitened", "standardised", "raw"])
@pytest.mark.parametrize(("confounds", "weighted"), [(0, False), (2, False), (2, True)])
def test_one_class_svms_by_torch_and_compiled(confounds, weighted, scaling):
    features, subsets = made(confounds, weighted)
    settings = DetectorSettings(latent_scaling=scaling)
    (compiled, one), (torch_scores, other) = (
        fitted(SvmParts(settings, SIZE), features, subsets, device) for device in (None, DEVICE)
    )
    assert np.isfinite(compiled).all() and compiled.std() > 0
    np.testing.assert_allclose(torch_scores, compiled, atol=3e-4 * compiled.std())  # float32
    new = np.random.default_rng(6).normal(size=(MASK.size, SIZE)).astype(np.float32)
    inside = np.ones(MASK.size, bool)
    np.testing.assert_allclose(other.score(new, inside=inside), one.score(new, inside=inside), rtol=2e-3)


def test_distances_by_torch_and_compiled():
    features, subsets = made(2, False)
    (compiled, _), (torch_scores, _) = (
        fitted(DistanceParts("both"), features, subsets, device) for device in (None, DEVICE)
    )
    np.testing.assert_allclose(torch_scores, compiled, atol=3e-4 * compiled.std())  # float32


def test_a_device_without_memory_gets_smaller_blocks(monkeypatch):
    features, subsets = made(0, False)
    sizes = []
    fit = module._Block._fit

    def little_memory(self, start, stop):
        sizes.append(stop - start)
        if stop - start > 20:
            raise torch.OutOfMemoryError
        return fit(self, start, stop)

    whole, _ = fitted(SvmParts(DetectorSettings(), SIZE), features, subsets, DEVICE)
    monkeypatch.setattr(module._Block, "_fit", little_memory)
    halved, _ = fitted(SvmParts(DetectorSettings(), SIZE), features, subsets, DEVICE)
    assert max(sizes) > 20 and min(sizes) <= 20
    np.testing.assert_allclose(halved, whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(), "has no memory left for a single voxel"),
        (
            RuntimeError("CUDA error: unspecified launch failure\nmore"),
            "is not usable any more (CUDA error: unspecified",
        ),
    ],
)
def test_a_device_that_cannot_go_on_is_told_in_a_sentence(monkeypatch, error, words):
    def fails(self, start, stop):
        raise error

    monkeypatch.setattr(module._Block, "_fit", fails)
    features, subsets = made(0, False)
    with pytest.raises(MachineError) as told:
        fitted(SvmParts(DetectorSettings(), SIZE), features, subsets, DEVICE)
    assert words in str(told.value) and "--device cpu" in str(told.value) and "\n" not in str(told.value)
